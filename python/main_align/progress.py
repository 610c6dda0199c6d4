"""Progress, OnProgress, tqdm_bar: the progress of a long job, and a bar for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

OnProgress = Callable[[int, int], None]
"""Called after each forward pass with the number of its pairs and of its tokens."""


@contextmanager
def tqdm_bar(total: int | None) -> Iterator[OnProgress]:
    """Draw a tqdm bar of `total` pairs: a widget in a notebook, text in a terminal."""
    from tqdm.auto import tqdm

    total_tokens = 0
    with tqdm(total=total, unit=" pairs") as bar:

        def update(pairs: int, tokens: int) -> None:
            nonlocal total_tokens
            total_tokens += tokens
            bar.set_postfix(tokens=total_tokens, refresh=False)
            bar.update(pairs)

        yield update


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a long job.

    Args:
        stage: "scoring", "bank", a stage of MAIN's loop, or a turn of a benchmark.
        pairs: rows finished so far, with or without a score.
        total: rows of the job.
        earlier: finished rows that an earlier, interrupted run left. Default: 0.
        tokens: tokens processed by the model in this run, in both directions. Default: 0.
        seconds: duration of this run so far. Default: 0.
        unit: what the rows are, in the plural. Default: "pairs".
    """

    stage: str
    pairs: int
    total: int
    earlier: int = 0
    tokens: int = 0
    seconds: float = 0.0
    unit: str = "pairs"
