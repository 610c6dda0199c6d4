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
import main_align.scoring.bank
import main_align.scoring.job
import main_align.scoring.scorer
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


def main(args: list[str], stage: str = "whole") -> None:
    STAGES[stage]()
    app(args)
