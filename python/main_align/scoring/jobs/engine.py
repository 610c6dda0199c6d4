"""Engine, JobSpec, InProcess: where the tasks of a job run. InProcess runs them here, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from ...data.fields import Fields
from ...data.read import open_address
from ..runner import Runner
from .folder import JobFolder
from .plan import JobPlan
from .worker import Finished, JobWorker, Task

Report = Callable[[Finished], None]


@dataclass(frozen=True)
class JobSpec:
    """Describe a job to a worker, in JSON values.

    Args:
        source: `Source.address` of the input.
        fields: the fields of `Fields`.
        lengths: rows of each file.
        sort_window: largest number of rows of a unit.
        folder: the folder of the job.
        group: the `worker` of JobFolder.
    """

    source: dict[str, Any]
    fields: dict[str, Any]
    lengths: list[int]
    sort_window: int
    folder: str
    group: str

    def worker(self, runner: Runner) -> JobWorker:
        """Return the worker of this job in this process."""
        plan = JobPlan.of(self.lengths, self.sort_window, runner.fingerprint)
        folder = JobFolder(Path(self.folder), self.group)
        return JobWorker(runner, open_address(self.source), Fields(**self.fields), plan, folder)

    def as_json(self) -> dict[str, Any]:
        """Return the fields of this object."""
        return asdict(self)


class Engine(Protocol):
    """Interface of what runs the tasks of one job. Use it as a context manager."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *error: object) -> None: ...

    @property
    def fingerprint(self) -> dict[str, Any]:
        """`Scorer.fingerprint` of the scorers."""

    def open(self, spec: JobSpec) -> None:
        """Prepare the workers for a job."""

    def run(self, tasks: Sequence[Task], report: Report) -> None:
        """Run tasks in any order, and return when all are done."""


class InProcess:
    """One worker in this process.

    Args:
        scorer: the scorer, or the arguments of `make_scorer`, which then loads the model when the job begins.
    """

    def __init__(self, scorer: Runner | Mapping[str, Any]) -> None:
        self._scorer = scorer
        self._runner: Runner
        self._worker: JobWorker | None = None

    def __enter__(self) -> InProcess:
        self._runner = make_scorer(self._scorer) if isinstance(self._scorer, Mapping) else self._scorer
        return self

    def __exit__(self, *error: object) -> None:
        self._worker = None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """`Scorer.fingerprint` of the scorer."""
        return self._runner.fingerprint

    def open(self, spec: JobSpec) -> None:
        """Prepare the worker for a job."""
        self._worker = spec.worker(self._runner)

    def run(self, tasks: Sequence[Task], report: Report) -> None:
        """Run tasks in order."""
        assert self._worker is not None
        for task, following in zip_longest(tasks, tasks[1:]):
            self._worker.run(task, report, following)


def make_scorer(settings: Mapping[str, Any]) -> Runner:
    """Return a scorer in a worker's process.

    Args:
        settings: arguments of `Scorer`; `class` names another class than it, as `module:name`.
    """
    options = dict(settings)
    module, name = options.pop("class", "main_align.scoring.scorer:Scorer").split(":")
    runner: Runner = getattr(import_module(module), name)(**options)
    return runner
