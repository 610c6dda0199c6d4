"""Run functions in processes of their own: forks of a server that has imported torch, transformers and TRL once, so a
process costs as much as its work."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.align.training.step_gradients", "tests.align.loop.run_and_kill"])
SECONDS = 300


def _child(function: Callable[..., object], arguments: tuple[object, ...], log: Path, environment: dict[str, str]):  # type: ignore[no-untyped-def]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    gc.freeze()  # leave the modules out of the full garbage collections of a trainer: each takes a second
    torch.set_num_threads(1)  # many tiny products: a second thread only waits
    function(*arguments)


def start(function: Callable[..., object], *arguments: object, log: Path, **environment: str) -> BaseProcess:
    """A process that runs a function of a module; the file ``log`` gets its standard output and error."""
    process = SERVER.Process(target=_child, args=(function, arguments, log, environment), daemon=True)
    process.start()
    return process


def end_of(process: BaseProcess) -> str:
    """Wait for a process and say how it ended: "exit 0", or "killed" by SIGKILL."""
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"a process ran for more than {SECONDS} s")
    return "killed" if process.exitcode == -signal.SIGKILL else f"exit {process.exitcode}"


def run(function: Callable[..., object], *arguments: object, log: Path) -> str:
    """Run a function in a process, which must end with exit 0, and return its output."""
    end = end_of(start(function, *arguments, log=log))
    assert end == "exit 0", (end, log.read_text()[-3000:])
    return log.read_text()


def run_ranks(count: int, function: Callable[..., object], *arguments: object, folder: Path) -> None:
    """Run a function in several processes at a time, which find each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    logs = [folder / f"rank-{rank}.log" for rank in range(count)]
    ranks = [
        start(function, *arguments, log=log, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank, log in enumerate(logs)
    ]
    ends = [end_of(rank) for rank in ranks]
    assert ends == ["exit 0"] * count, (ends, *(log.read_text()[-3000:] for log in logs))
