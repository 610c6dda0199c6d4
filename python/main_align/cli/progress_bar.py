"""Progress of a long job on stderr: a bar in a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..progress import (
        Progress,
    )

SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Call it with each Progress. Use as a context manager, so that the bar is taken down."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self._bar: Any = None
        self._task: Any = None
        self._last_line = 0.0
        self.used = False

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line about what happens now."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __call__(self, progress: Progress) -> None:
        self.used = True
        if self.console.is_terminal:
            self._draw(progress)
        else:
            self._print(progress)

    def _draw(self, progress: Progress) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        if self._bar is None:
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
            tail = TextColumn("pairs  {task.fields[speed]}  {task.fields[left]}")
            self._bar = Bar(*columns, tail, console=self.console)
            self._task = self._bar.add_task("", total=progress.total, speed="", left="")
            self._bar.start()
        self._bar.update(
            self._task,
            description=progress.stage,
            total=progress.total,
            completed=progress.pairs,
            speed=_speed(progress),
            left=_left(progress),
        )

    def _print(self, progress: Progress) -> None:
        now = time.monotonic()
        last = progress.pairs == progress.total
        if not last and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        parts = (f"{progress.pairs}/{progress.total} pairs", _speed(progress), _left(progress))
        self.say(f"{progress.stage}: {', '.join(part for part in parts if part)}")


def _speed(progress: Progress) -> str:
    if not progress.tokens or progress.seconds <= 0:
        return ""
    return f"{progress.tokens / progress.seconds:,.0f} tokens/s"


def _left(progress: Progress) -> str:
    fresh = progress.pairs - progress.earlier
    if progress.stage == "bank" or fresh <= 0 or progress.pairs == progress.total:
        return ""
    return clock(progress.seconds * (progress.total - progress.pairs) / fresh) + " left"


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
