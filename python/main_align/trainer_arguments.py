"""check_best_metric, refused_settings: checks of transformers' TrainingArguments, and refusals of the libraries."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import UserError

_LIBRARIES = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "peft",
    "torch.optim",
    "torch.utils.data",
    "transformers",
    "trl",
)


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


@contextmanager
def refused_settings() -> Iterator[None]:
    """Turn an error that a training library raises itself into UserError: a setting, a package or the network is wrong.

    A TypeError is about the options that a library passes on. Any other error, such as one of torch in the forward of a
    model, is a bug and keeps its traceback, also where `datasets` called the function and raises an error from it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        libraries = [next((each for each in _LIBRARIES if f"{name}.".startswith(f"{each}.")), "") for name in modules]
        library = "huggingface_hub" if "huggingface_hub" in libraries else libraries[-1]
        is_raised = (traceback.extract_tb(error.__traceback__)[-1].line or "").startswith("raise")
        is_passed_on = library == "datasets" and error.__cause__ is not None
        if not library or is_passed_on or not (is_raised or isinstance(error, TypeError)):
            raise
        message = error.args[0] if isinstance(error, KeyError) else error  # str() of a KeyError is a repr
        raise UserError(f"{library}: {message}") from error
