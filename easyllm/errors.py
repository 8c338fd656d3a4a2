"""A failure that its user can mend, and that needs no traceback."""


class UserError(Exception):
    """Says what is wrong, with the value, and what to do about it."""


class BadRecord(UserError):
    """A record of the data that cannot be used; the rest can."""
