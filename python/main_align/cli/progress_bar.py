"""ProgressBar: a bar on stderr in a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..progress import Progress

SECONDS_BETWEEN_LINES = 5.0


class ProgressBar:
    """Show the progress of a job. Call it with each Progress; use it as a context manager to remove the bar."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self._bar: Any = None
        self._task: Any = None
        self._last_line = 0.0
        self.used = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def log(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __call__(self, progress: Progress) -> None:
        self.used = True
        if self.console.is_terminal:
            self._draw(progress)
        else:
            self._print(progress)

    def _draw(self, progress: Progress) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        if self._bar is None:
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
            tail = TextColumn("{task.fields[unit]}  {task.fields[speed]}  {task.fields[left]}")
            self._bar = RichProgress(*columns, tail, console=self.console)
            self._task = self._bar.add_task("", total=progress.total, unit=progress.unit, speed="", left="")
            self._bar.start()
        self._bar.update(
            self._task,
            description=progress.stage,
            total=progress.total,
            completed=progress.pairs,
            unit=progress.unit,
            speed=_speed(progress),
            left=_time_left(progress),
        )

    def _print(self, progress: Progress) -> None:
        now = time.monotonic()
        is_last = progress.pairs == progress.total
        if not is_last and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        parts = (f"{progress.pairs}/{progress.total} {progress.unit}", _speed(progress), _time_left(progress))
        self.log(f"{progress.stage}: {', '.join(part for part in parts if part)}")


def _speed(progress: Progress) -> str:
    if not progress.tokens or progress.seconds <= 0:
        return ""
    return f"{progress.tokens / progress.seconds:,.0f} tokens/s"


def _time_left(progress: Progress) -> str:
    fresh = progress.pairs - progress.earlier
    if progress.stage == "bank" or fresh <= 0 or progress.pairs == progress.total:
        return ""
    return clock(progress.seconds * (progress.total - progress.pairs) / fresh) + " left"


def clock(seconds: float) -> str:
    """Format a duration as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
