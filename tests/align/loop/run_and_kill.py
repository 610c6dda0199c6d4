"""Processes that test_loop.py forks: the loop, killed with SIGKILL in one of its stages."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import main_align.loop.generate_stage
import main_align.loop.loop
import main_align.scoring.job
from main_align.cli.app import app
from main_align.data.journal import Journal
from main_align.loop.model_pair import ModelPair
from main_align.loop.run_dir import RunDir

from tests.align.scoring.run_and_kill import before, die


def at_rename(part: str) -> None:
    """Kill the process before a stage's folder is renamed."""
    original = os.rename

    def wrapped(source: Any, target: Any) -> None:
        if part in str(target) and str(source).endswith(".partial"):
            die()
        original(source, target)

    os.rename = wrapped


TRAPS: dict[str, Callable[[], None]] = {
    "warm-up trained, not saved": lambda: before(ModelPair, "save", 1, lambda *_: die()),
    "second warm-up saved, no manifest": lambda: before(RunDir, "finish", 2, lambda *_: die()),
    "one batch generated": lambda: before(Journal, "append", 2, lambda *_: die()),
    "all batches generated, not collected": lambda: before(
        main_align.loop.generate_stage, "collect_generations", 1, lambda *_: die()
    ),
    "trained, not renamed": lambda: at_rename("train-forward"),
    "collected, not renamed": lambda: at_rename("generate-responses"),
    "scored, scores not written": lambda: before(main_align.scoring.job, "write_scores", 1, lambda *_: die()),
    "filtered, not renamed": lambda: at_rename("filter"),
    "no report": lambda: before(main_align.loop.loop, "write_report", 1, lambda *_: die()),
    "none": lambda: None,
}


def main(config: str, trap: str = "none") -> None:
    TRAPS[trap]()
    app(["train", config])
