"""UserError: the exception for mistakes that a user can fix."""

from __future__ import annotations


class UserError(ValueError):
    """Report a mistake that the user can fix.

    The message names the file, row or option and the remedy. The command line prints it without a traceback.
    """
