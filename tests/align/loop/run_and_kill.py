"""Run as a script by test_loop: one run of the loop, killed with SIGKILL in stage after stage, and gone on with.

    python -m tests.align.loop.run_and_kill CONFIG

Imports the heavy libraries once and forks a process for each attempt. Prints one line an attempt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import main_align.loop.loop
import main_align.scoring.job
import torch
from main_align.cli.app import app
from main_align.data.journal import Journal
from main_align.loop.model_pair import Directions
from main_align.loop.run_dir import RunFolder

from tests.align.scoring.run_and_kill import before, die


def at_rename(part: str) -> None:
    """Death before the folder of a stage takes its name."""
    original = os.rename

    def wrapped(source: Any, target: Any) -> None:
        if part in str(target) and str(source).endswith(".partial"):
            die()
        original(source, target)

    os.rename = wrapped


TRAPS: dict[str, Callable[[], None]] = {
    "warmed up, not saved": lambda: before(Directions, "save", 1, lambda *_: die()),
    "second warm-up saved, no manifest": lambda: before(RunFolder, "finish", 2, lambda *_: die()),
    "one batch written": lambda: before(Journal, "append", 2, lambda *_: die()),
    "all written, not collected": lambda: before(main_align.loop.loop, "collect", 1, lambda *_: die()),
    "trained, not renamed": lambda: at_rename("train-forward"),
    "collected, not renamed": lambda: at_rename("synthesise-responses"),
    "scored, scores not written": lambda: before(main_align.scoring.job, "write_scores", 1, lambda *_: die()),
    "kept, not renamed": lambda: at_rename("filter"),
    "no report": lambda: before(main_align.loop.loop, "write_report", 1, lambda *_: die()),
    "none": lambda: None,
}


def main(config: str) -> None:
    torch.set_num_threads(1)
    for name, trap in TRAPS.items():
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            trap()
            try:
                app(["train", config])
            except SystemExit as end:
                os._exit(int(end.code or 0))
        status = os.waitpid(child, 0)[1]
        print("RUN", name, ":", "killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
