"""Processes: an engine of worker processes on this machine. A worker that dies costs only its unfinished pairs.

A worker is a program of its own (worker_process.py). It reads JSON lines from its standard input, the settings, a job
and tasks, and answers on its standard output. It dies with its parent.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import UserError
from .engine import JobSpec, Report
from .task_queue import TaskQueue
from .worker import Finished, Task


class Processes:
    """Worker processes.

    Args:
        count: number of workers. With several GPUs, worker i uses GPU i modulo their number; on a CPU, the cores are
            shared out.
        settings: arguments of `Scorer` for every worker.
        log: called with a sentence when a worker dies.

    Raises:
        UserError: `count` is below 1.
    """

    def __init__(self, count: int, settings: Mapping[str, Any], log: Callable[[str], None]) -> None:
        if count < 1:
            raise UserError(f"workers must be at least 1, got {count}")
        self._count, self._settings, self._log = count, dict(settings), log
        self._workers: list[_Worker] = []
        self.fingerprint: dict[str, Any] = {}

    def __enter__(self) -> Processes:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        threads = max(1, len(os.sched_getaffinity(0)) // self._count)
        for index in range(self._count):
            self._workers.append(_Worker(threads))
            self._workers[-1].send({"settings": self._settings, "index": index})
        for worker in self._workers:
            message = worker.receive()
            if message is None:
                raise UserError(f"a worker ended while it loaded the model ({worker.end()}); its message is above")
            self.fingerprint = message["fingerprint"]

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()

    def open(self, spec: JobSpec) -> None:
        """Prepare the workers for a job."""
        for worker in self._workers:
            worker.send({"job": spec.as_json()})

    def run(self, tasks: Sequence[Task], report: Report) -> None:
        """Run tasks; an idle worker takes the next one.

        Raises:
            UserError: a worker reports an error, a task kills several workers, or no worker is left.
        """
        queue, running = TaskQueue(tasks, report, self._log), dict[_Worker, Task]()
        while queue.waiting or running:
            for worker in self._workers:
                if queue.waiting and worker not in running:
                    running[worker], following = queue.take(worker)
                    worker.send({"tasks": [running[worker], following]})
            if not running:
                raise UserError("no worker is left. Finished work is saved; run again to resume")
            for worker in _with_a_message(list(running)):
                message = worker.receive()
                if message is None:
                    self._workers.remove(worker)
                    queue.died(worker, running.pop(worker), worker.end())
                elif "done" in message:
                    del running[worker]
                else:
                    queue.finished(running[worker], Finished(*message["finished"]))


def _with_a_message(workers: list[_Worker]) -> list[_Worker]:
    """Wait until some of the workers have sent something, or died, and return these."""
    return [worker for worker in workers if worker.lines] or select.select(workers, [], [])[0]


class _Worker:
    """One worker process and the JSON lines to and from it."""

    def __init__(self, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "main_align.scoring.jobs.worker_process", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its workers
        )
        self.lines: list[bytes] = []  # received and not read yet
        self._rest = b""

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead, which `receive` finds out

    def receive(self) -> dict[str, Any] | None:
        """Wait for a message. None: the process has died.

        Raises:
            UserError: the worker reports one.
        """
        while not self.lines:
            received = os.read(self.fileno(), 1 << 16)
            if not received:
                return None
            *self.lines, self._rest = (self._rest + received).split(b"\n")
        message: dict[str, Any] = json.loads(self.lines.pop(0))
        if "error" in message:
            raise UserError(message["error"])
        return message

    def end(self) -> str:
        """End the process, and say how it ended."""
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"
