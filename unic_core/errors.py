"""The one error a user is meant to read."""

from __future__ import annotations


class UnicError(Exception):
    """Something the user can put right: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class OutageError(UnicError):
    """A service does not answer at the moment: the same call may well succeed later."""
