"""Progress of a long job, and a bar that shows it in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

OnProgress = Callable[[int, int], None]
"""Called after each pack with its pairs and its tokens."""


@contextmanager
def bar(total: int | None) -> Iterator[OnProgress]:
    """A bar of `total` pairs, a widget where a notebook is found."""
    from tqdm.auto import tqdm

    tokens = 0
    with tqdm(total=total, unit=" pairs") as shown:

        def update(pairs: int, more: int) -> None:
            nonlocal tokens
            tokens += more
            shown.set_postfix(tokens=tokens, refresh=False)
            shown.update(pairs)

        yield update


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. `pairs` of `total` rows are settled, `earlier` of them by a former run.

    `tokens` went through the model in this run, both directions counted, in `seconds`.
    """

    stage: str  # "scoring" or "bank", or a stage of the loop
    pairs: int
    total: int
    earlier: int = 0
    tokens: int = 0
    seconds: float = 0.0
