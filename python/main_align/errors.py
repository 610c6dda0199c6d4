"""UserError, UserTypeError: exceptions for mistakes that a user can fix. exit_code: that of an interrupted command."""

from __future__ import annotations


class UserError(ValueError):
    """Report a mistake that the user can fix.

    The message names the file, row or option and the remedy. The command line prints it without a traceback.
    """


class UserTypeError(UserError, TypeError):
    """Report a value of a wrong type."""


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return 128 plus the number of the signal that interrupted the program, 130 for Ctrl-C."""
    return int(interrupt.args[0]) if interrupt.args else 130
