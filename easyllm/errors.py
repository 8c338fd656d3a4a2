"""A failure that its user can mend, and that needs no traceback."""


class UserError(Exception):
    """Says what is wrong, with the value, and what to do about it."""


class BadRecord(UserError):
    """A record of the data that cannot be used; the rest can."""


class Unusable(UserError):
    """A file or folder behind which there is no model: what is wrong, and the remedy."""

    def __init__(self, path: object, what: str, remedy: str = ""):
        super().__init__(f"{path}: {what}; {remedy}" if remedy else f"{path}: {what}")
        self.what = what
