"""The results file: one line a finished run, written as soon as it is finished.

A study that was interrupted goes on where it stopped: what is in the file is not done again, and settings that differ
from the file's are refused rather than mixed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Run = dict[str, Any]


class ResultsFile:
    """The runs in `path`, each with a part, an experiment and a seed, and what holds for all of them."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = path
        self.head: dict[str, Any] = {"settings": json.loads(json.dumps(settings))}
        self.runs: list[Run] = []
        if path.exists() and not restart:
            self.head, self.runs = load(path)
            if self.head["settings"] != json.loads(json.dumps(settings)):
                old, new = self.head["settings"], json.loads(json.dumps(settings))
                differing = ", ".join(sorted(k for k in old | new if old.get(k) != new.get(k)))
                raise SystemExit(f"{path}: made with other settings ({differing}); use --restart or another -o")

    def find(self, part: str, experiment: str, seed: int) -> Run | None:
        own = (run for run in self.runs if (run["part"], run["experiment"], run["seed"]) == (part, experiment, seed))
        return next(own, None)

    def describe(self, **facts: Any) -> None:
        """Record facts that all runs share: the machine and the data."""
        self.head |= facts

    def add(self, run: Run) -> None:
        self.runs.append(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(_text(self.head, self.runs))
        new.replace(self.path)


def load(path: Path) -> tuple[dict[str, Any], list[Run]]:
    """(what holds for all runs, the runs) of a results file."""
    head = json.loads(path.read_text())
    return head, head.pop("runs")


def _text(head: Mapping[str, Any], runs: list[Run]) -> str:
    top = json.dumps(head, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    return f'{top},\n "runs": [\n{lines}\n ]\n}}\n'
