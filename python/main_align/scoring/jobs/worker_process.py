"""The program of a worker process: run tasks that arrive as JSON lines, and answer in JSON lines (see processes.py)."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runner import Runner

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def main() -> None:
    """Serve the parent process, whose id is the argument, until it closes the pipe."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return  # the parent died before
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    serve(sys.stdin, answers)


def serve(messages: IO[str], answers: IO[str]) -> None:
    """Answer each message.

    Args:
        messages: lines from the parent: the settings, a job, then tasks.
        answers: where the answers go.
    """
    from ...errors import UserError

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        _serve(messages, answer)
    except UserError as error:
        answer(error=str(error))
    except OSError as error:
        answer(error=f"{error}. Check the path, its permissions and the free disk space. Run again to resume")


def _serve(messages: IO[str], answer: Any) -> None:
    from .engine import JobSpec
    from .worker import Finished, JobWorker, Task

    def report(finished: Finished) -> None:
        answer(finished=finished)

    worker: JobWorker | None = None
    for line in messages:
        message = json.loads(line)
        if "settings" in message:
            scorer = load(message["settings"], message["index"])
            answer(fingerprint=scorer.fingerprint)
        elif "job" in message:
            worker = JobSpec(**message["job"]).worker(scorer)
        else:
            assert worker is not None
            task, following = (Task(*found) if found else None for found in message["tasks"])
            assert task is not None
            worker.run(task, report, following)
            answer(done=True)


def load(settings: dict[str, Any], index: int) -> Runner:
    """Return the scorer of a worker. All workers load the same model, so only the first one logs warnings about it.

    Args:
        settings: arguments of `Scorer`.
        index: number of the worker.
    """
    from .engine import make_scorer

    logging.disable(logging.WARNING if index else logging.NOTSET)
    try:
        return make_scorer(on_own_device(settings, index))
    finally:
        logging.disable(logging.NOTSET)


def on_own_device(settings: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the settings of worker `index`: of several GPUs, each worker gets another one.

    Args:
        settings: arguments of `Scorer`.
        index: number of the worker.
    """
    import torch

    if settings.get("device", "auto") not in ("auto", "cuda") or not torch.cuda.is_available():
        return settings
    return settings | {"device": f"cuda:{index % torch.cuda.device_count()}"}


if __name__ == "__main__":
    main()
