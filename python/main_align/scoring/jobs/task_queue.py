"""TaskQueue: tasks that wait, and what to do when the worker of one dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ...errors import UserError
from .worker import Finished, Task

ATTEMPTS = 2
"""workers that may die of one task"""


class TaskQueue:
    """The tasks of one stage, for engines with several workers.

    Args:
        tasks: the tasks.
        report: called whenever pairs are finished.
        log: called with a sentence when a worker dies.
    """

    def __init__(self, tasks: Sequence[Task], report: Callable[[Finished], None], log: Callable[[str], None]) -> None:
        self.waiting = list(tasks)[::-1]
        self._report, self._log = report, log
        self._reported, self._deaths = Counter[Task](), Counter[Task]()

    def finished(self, task: Task, finished: Finished) -> None:
        """Report pairs of a task."""
        self._reported[task] += finished.pairs
        self._report(finished)

    def died(self, task: Task, how: str) -> None:
        """Put a task back whose worker died, and take back what it reported: the next worker reports it again.

        Args:
            task: the task.
            how: how the worker died.

        Raises:
            UserError: ATTEMPTS workers died of the task.
        """
        self._deaths[task] += 1
        what = f"a worker died ({how}) while it worked on unit {task.number}"
        if self._deaths[task] == ATTEMPTS:
            raise UserError(
                f"{what}, as did another before. Finished work is saved; run again to resume, with fewer --workers or "
                "a lower --batch-tokens if memory ran out"
            )
        self._log(f"{what}; another worker takes over")
        self._report(Finished(-self._reported.pop(task, 0)))
        self.waiting.append(task)
