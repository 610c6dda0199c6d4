"""A progress bar for scoring in memory, in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
