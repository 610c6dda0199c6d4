"""check_best_metric: a check of transformers' TrainingArguments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import UserError


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
