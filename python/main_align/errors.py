"""UserError: the exception for mistakes that a user can fix. check_counts raises it for numbers below 1."""

from __future__ import annotations


class UserError(ValueError):
    """Report a mistake that the user can fix.

    The message names the file, row or option and the remedy. The command line prints it without a traceback.
    """


def check_counts(**values: int | None) -> None:
    """Raise UserError for a number below 1. None stands for a default."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
