"""What the processes of test_job.py run: `main-align score`, killed with SIGKILL in one of its stages."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import main_align.data.journal
import main_align.data.write
import main_align.scoring.job
from main_align.cli.app import app
from main_align.data.journal import FRAME, Journal
from main_align.scoring.bank import Bank
from main_align.scoring.jobs.worker import JobWorker


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


def dies_on(pattern: str) -> Callable[[Any, Any], None]:
    """Death before a file is renamed to a path of this pattern."""

    def check(_: Any, target: Any) -> None:
        if Path(target).match(pattern):
            die()

    return check


def every_rename(action: Callable[..., None]) -> None:
    original = os.replace

    def wrapped(source: Any, target: Any) -> None:
        action(source, target)
        original(source, target)

    os.replace = wrapped


STAGES: dict[str, Callable[[], None]] = {
    "whole": lambda: None,
    "torn_record": lambda: before(Journal, "append", 4, tear),
    "bank_chosen": lambda: before(Bank, "save", 1, lambda *_: die()),
    "within_a_unit": lambda: before(JobWorker, "_scored", 2, lambda *_: die()),
    "part_written": lambda: every_rename(dies_on("parts/*.parquet")),
    "before_manifest": lambda: before(main_align.scoring.job, "write_manifest", 1, lambda *_: die()),
    "while_removing": lambda: before(shutil, "rmtree", 1, lambda *_: die()),
}


def main(args: list[str], stage: str = "whole") -> None:
    STAGES[stage]()
    app(args)
