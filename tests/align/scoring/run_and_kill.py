"""Run as a script by test_job: real `main-align score` processes, killed with SIGKILL, and again.

    python -m tests.align.scoring.run_and_kill INPUT MODEL FOLDER

Imports the heavy libraries once and forks a process for each run, so the runs cost little. Prints
one line a run: the stage, its output file and how the process ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import main_align.data.journal
import main_align.data.write
import main_align.scoring.bank
import main_align.scoring.job
import main_align.scoring.scorer
import torch
from main_align.cli.app import app
from main_align.data.journal import FRAME, Journal


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, call: int, action: Callable[..., None]) -> None:
    """Replace owner.name by itself with `action` run before its call number `call`."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            action(*args)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def tear(journal: Journal, *_: Any) -> None:
    """Half a record on the disk, then death."""
    journal._file.write(FRAME.pack(1000, 12345) + b"half")
    journal._file.flush()
    die()


def die_on_out(_: Any, target: Path) -> None:
    if str(target).endswith(".parquet"):
        die()


def every_rename(action: Callable[..., None]) -> None:
    original = os.replace

    def wrapped(source: Any, target: Any) -> None:
        action(source, target)
        original(source, target)

    os.replace = wrapped


STAGES: dict[str, Callable[[], None]] = {
    "whole": lambda: None,
    "before_anything": lambda: before(Journal, "append", 1, lambda *_: die()),
    "first_pack": lambda: before(Journal, "append", 3, lambda *_: die()),
    "torn_record": lambda: before(Journal, "append", 4, tear),
    "second_window": lambda: before(main_align.scoring.scorer.Scorer, "prepare", 2, lambda *_: die()),
    "bank_pass": lambda: before(main_align.scoring.bank.Bank, "score", 2, lambda *_: die()),
    "before_rename": lambda: every_rename(die_on_out),
    "before_manifest": lambda: before(main_align.scoring.job, "write_manifest", 1, lambda *_: die()),
    "while_removing": lambda: before(shutil, "rmtree", 1, lambda *_: die()),
}


def run(args: list[str], stage: str, seconds: float | None = None) -> str:
    """Fork, run the command with the stage's trap (or shoot it from outside), say how it ended."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        STAGES[stage]()
        try:
            app(args)
        except SystemExit as end:
            os._exit(int(end.code or 0))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return "killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def main(source: str, model: str, folder: str) -> None:
    torch.set_num_threads(1)  # many tiny products: a second thread only waits

    def args(name: str) -> list[str]:
        settings = ["--model", model, "--pack-tokens", "400", "--window", "20", "--bank", "25"]
        return ["score", source, "-o", str(Path(folder) / f"{name}.parquet"), *settings]

    for stage in STAGES:
        print("RUN", stage, stage, run(args(stage), stage))
        if stage != "whole":
            print("RUN", stage, stage, run(args(stage), "whole"))
    # the last runs may find the work done already: those are repeats of a finished job
    for tenths in range(1, 8, 2):
        print("RUN", "shot", "shot", run(args("shot"), "whole", tenths / 10))
    print("RUN", "shot", "shot", run(args("shot"), "whole"))


if __name__ == "__main__":
    main(*sys.argv[1:])
