"""RayActors: an engine of Ray actors, on this machine or on a cluster. An actor that dies is replaced.

The driver hands out the units, one at a time, so order, resuming and the bytes of the output do not depend on Ray. All
actors need the input, the model and the output folder under the same paths.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import UserError
from ..scoring.jobs.engine import JobSpec, Report, make_scorer
from ..scoring.jobs.task_queue import TaskQueue
from ..scoring.jobs.worker import Finished, JobWorker, Task

SECONDS_BETWEEN_REPORTS = 2.0
SECONDS_UNTIL_NOTICE = 60.0
"""time after which a job says that Ray has not placed its actors"""


class RayActors:
    """Workers as Ray actors.

    Args:
        count: number of actors.
        settings: arguments of `Scorer` for every actor.
        log: called with a sentence when an actor dies.
        gpus: GPUs of each actor; a fraction shares one. Default 0.
        address: a cluster to join; "auto" is the one of this machine. Default: none, Ray is started here and ends with
            the job.

    Raises:
        UserError: Ray is not installed, or `count` is below 1.
    """

    def __init__(
        self,
        count: int,
        settings: Mapping[str, Any],
        log: Callable[[str], None],
        *,
        gpus: float = 0,
        address: str | None = None,
    ) -> None:
        if count < 1:
            raise UserError(f"workers must be at least 1, got {count}")
        try:
            import ray
        except ImportError as error:
            raise UserError(f"--engine ray needs Ray ({error}): pip install 'main-kernels[ray]'") from None
        self._ray: Any = ray
        self._log = log
        self._count, self._settings, self._gpus, self._address = count, dict(settings), gpus, address
        # on a cluster, Ray sets the threads of an actor from its CPUs
        self._threads = None if address else max(1, len(os.sched_getaffinity(0)) // count)
        self._actors: list[Any] = []
        self._spec: dict[str, Any] = {}
        self.fingerprint: dict[str, Any] = {}

    def __enter__(self) -> RayActors:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if self._address:
            self._ray.init(address=self._address, log_to_driver=False)
        else:
            # one CPU more than actors: Ray needs it for itself
            self._ray.init(address="local", num_cpus=self._count + 1, include_dashboard=False, log_to_driver=False)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler aborts with a stack trace
        try:
            self._actors = [self._start() for _ in range(self._count)]
            for loading in [actor.load.remote(self._settings, self._threads) for actor in self._actors]:
                self.fingerprint = self._loaded(loading)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()

    def open(self, spec: JobSpec) -> None:
        """Prepare the actors for a job."""
        self._spec = spec.as_json()
        for actor in self._actors:
            self._get(actor.open.remote(self._spec))

    def run(self, tasks: Sequence[Task], report: Report) -> None:
        """Run tasks; an idle actor takes the next one.

        Raises:
            UserError: an actor reports an error, or a task kills several actors.
        """
        queue, running = TaskQueue(tasks, report, self._log), dict[Any, tuple[Any, Task]]()
        while queue.waiting or running:
            busy = [actor for actor, _ in running.values()]
            for actor in [actor for actor in self._actors if actor not in busy]:
                if queue.waiting:
                    task, following = queue.take(actor)
                    running[actor.run.remote(task, following)] = actor, task
            done, _ = self._ray.wait(list(running), timeout=SECONDS_BETWEEN_REPORTS)
            for result, (actor, task) in list(running.items()):
                try:
                    for finished in self._get(actor.finished.remote()):
                        queue.finished(task, Finished(*finished))
                    if result in done:
                        self._get(result)
                        del running[result]
                except self._ray.exceptions.RayActorError as error:
                    del running[result]
                    queue.died(actor, task, str(error).partition("\n")[0])
                    self._replace(actor)

    def _replace(self, actor: Any) -> None:
        self._actors.remove(actor)
        self._actors.append(self._start())
        self._loaded(self._actors[-1].load.remote(self._settings, self._threads))
        self._get(self._actors[-1].open.remote(self._spec))

    def _start(self) -> Any:
        # two calls at a time: a task, and `finished` while it runs
        remote = self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_concurrency=2)(_Actor)
        return remote.remote()

    def _loaded(self, loading: Any) -> dict[str, Any]:
        """Wait until an actor has loaded the model, and return its fingerprint."""
        if not self._ray.wait([loading], timeout=SECONDS_UNTIL_NOTICE)[0]:
            needs = f"{self._count} actors with one CPU" + (f" and {self._gpus:g} GPUs" if self._gpus else "")
            free = {name: self._ray.available_resources().get(name, 0) for name in ("CPU", "GPU")}
            self._log(f"still waiting for {needs} each; free in Ray: {free['CPU']:g} CPUs, {free['GPU']:g} GPUs")
        try:
            fingerprint: dict[str, Any] = self._get(loading)
            return fingerprint
        except self._ray.exceptions.RayActorError as error:
            why = str(error).partition("\n")[0]
            raise UserError(f"an actor died while it loaded the model ({why}); does the memory suffice?") from None

    def _get(self, result: Any) -> Any:
        try:
            return self._ray.get(result)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, OSError):
                raise UserError(f"{cause}. Check the path, its permissions and the free disk space") from None
            raise (UserError(str(cause)) if isinstance(cause, UserError) else error) from None


class _Actor:
    """One scorer in a process of Ray's."""

    def __init__(self) -> None:
        self._worker: JobWorker | None = None
        self._finished: list[Finished] = []

    def load(self, settings: Mapping[str, Any], threads: int | None) -> dict[str, Any]:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._scorer = make_scorer(settings)
        return self._scorer.fingerprint

    def open(self, spec: Mapping[str, Any]) -> None:
        self._worker = JobSpec(**spec).worker(self._scorer)

    def run(self, task: Task, following: Task | None) -> None:
        assert self._worker is not None
        self._worker.run(task, self._finished.append, following)

    def finished(self) -> list[Finished]:
        # one by one: the task appends to the list in another thread
        return [self._finished.pop(0) for _ in range(len(self._finished))]
