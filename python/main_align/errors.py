"""UserError: the exception for mistakes that a user can fix. check_counts and check_divisor raise it for numbers."""

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


def check_divisor(**values: float) -> None:
    """Raise UserError for a number that cannot divide scores, because its inverse is 0 or infinite in float32."""
    for name, value in values.items():
        if not 1e-38 <= value <= 1e38:
            raise UserError(f"{name} must be above 0 and within 1e-38 and 1e38, got {value}")
