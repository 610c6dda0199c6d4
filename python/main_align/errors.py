"""The error type for mistakes a user can mend: the command line prints it without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Names the file, row or option at fault and the remedy, in words fit for the terminal."""
