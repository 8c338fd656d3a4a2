"""Failures that a user can fix, which need no traceback, and the exit statuses of the command."""

from __future__ import annotations

DONE = 0
FAILED = 1
REFUSED = 2
"""The spec or the command line has problems; nothing was started."""
STOPPED = 75
"""Asked to stop, or out of time: the same command resumes the run (EX_TEMPFAIL of sysexits.h)."""
HUNG = 124
"""A rank made no progress for ``hardware.timeout_s`` (as coreutils' timeout)."""
INTERRUPTED = 130
"""Ended by Ctrl-C (128 + SIGINT, as in shells)."""


class UserError(Exception):
    """Says what is wrong, with the value, and after the last semicolon what to do about it."""

    @property
    def parts(self) -> tuple[str, str]:
        """What is wrong, and what to do about it; the latter is empty where it is not given."""
        what, _, remedy = str(self).rpartition("; ")
        return (what, remedy) if what else (remedy, "")


class WrongValue(UserError):
    """A value of the spec that does not fit the files, the model or the machine."""

    def __init__(self, key: str, value: object, what: str, remedy: str):
        super().__init__(f"{key}={value}: {what}; {remedy}")
        self.key, self.value, self.what, self.remedy = key, value, what, remedy


class BadRecord(UserError):
    """A record of the data that cannot be used; other records can."""


class Unusable(UserError):
    """A file or folder that is not a usable model: what is wrong, and the remedy."""

    def __init__(self, path: object, what: str, remedy: str = ""):
        super().__init__(f"{path}: {what}; {remedy}" if remedy else f"{path}: {what}")
        self.what = what
