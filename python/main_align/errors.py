"""UserError: the exception for mistakes that a user can fix, and the checks of arguments that raise it.

exit_code: that of an interrupted command.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Report a mistake that the user can fix.

    The message names the file, row or option and the remedy. The command line prints it without a traceback.
    """


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return 128 plus the number of the signal that interrupted the program, 130 for Ctrl-C."""
    return int(interrupt.args[0]) if interrupt.args else 130


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


def check_best_metric(args: Any, lower_is_better: Iterable[str]) -> None:
    """Raise UserError if a trainer would keep the model whose metric is worst.

    transformers sets `greater_is_better` to True for every metric whose name does not end in "loss".

    Args:
        args: transformers.TrainingArguments.
        lower_is_better: endings of the names of metrics whose best value is the lowest.
    """
    metric = args.metric_for_best_model or ""
    if args.greater_is_better and metric.endswith(tuple(lower_is_better)):
        raise UserError(
            f"metric_for_best_model={metric!r} with greater_is_better=True would keep the worst model: lower values "
            "are better. Set greater_is_better=False"
        )
