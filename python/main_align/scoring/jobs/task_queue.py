"""TaskQueue: tasks that wait, and what to do when the worker of one dies."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence

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
        self.waiting = deque(tasks)
        self._report, self._log = report, log
        self._reported, self._deaths = Counter[Task](), Counter[Task]()
        self._promised: dict[Hashable, Task] = {}

    def take(self, worker: Hashable) -> tuple[Task, Task | None]:
        """Take a task for an idle worker.

        Args:
            worker: what tells this worker from the others.

        Returns:
            The task, and the one that it may prepare meanwhile: it gets that next, unless nothing else is left for
            another worker. A task that a worker died of runs alone, so the next death is not that of the other task.
        """
        task = self._promised.pop(worker, None)
        if task is None or task not in self.waiting:
            task = self._not_promised() or self.waiting[0]
        self.waiting.remove(task)
        following = None if self._deaths[task] else self._not_promised()
        if following is not None:
            self._promised[worker] = following
        return task, following

    def _not_promised(self) -> Task | None:
        promised = set(self._promised.values())
        return next((task for task in self.waiting if task not in promised), None)

    def finished(self, task: Task, finished: Finished) -> None:
        """Report pairs of a task."""
        self._reported[task] += finished.pairs
        self._report(finished)

    def died(self, worker: Hashable, task: Task, how: str) -> None:
        """Put a task back whose worker died, and take back what it reported: the next worker reports it again.

        Args:
            worker: the worker.
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
        self._promised.pop(worker, None)
        self.waiting.appendleft(task)
