"""ResultsFile: one line per finished run, written as soon as the run is finished.

An interrupted study resumes: runs in the file are not repeated. Settings that differ from those of the file are an
error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Run = dict[str, Any]


class ResultsFile:
    """The runs in a file, each with part, experiment and seed, and the facts that all runs share.

    Args:
        path: the JSON file.
        settings: settings that all its runs share.
        restart: delete existing runs.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = path
        self.head: dict[str, Any] = {"settings": json.loads(json.dumps(settings))}
        self.runs: list[Run] = []
        if path.exists() and not restart:
            self.head, self.runs = load(path)
            if self.head["settings"] != json.loads(json.dumps(settings)):
                old, new = self.head["settings"], json.loads(json.dumps(settings))
                differing = ", ".join(sorted(k for k in old | new if old.get(k) != new.get(k)))
                raise SystemExit(f"{path} has other settings ({differing}); use --restart or another -o")

    def find(self, part: str, experiment: str, seed: int) -> Run | None:
        """Return a finished run, or None."""
        matches = (
            run for run in self.runs if (run["part"], run["experiment"], run["seed"]) == (part, experiment, seed)
        )
        return next(matches, None)

    def describe(self, **facts: Any) -> None:
        """Record facts that all runs share: the machine and the data."""
        self.head |= facts

    def add(self, run: Run) -> None:
        """Append a finished run and write the file atomically."""
        self.runs.append(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(_text(self.head, self.runs))
        new.replace(self.path)


def load(path: Path) -> tuple[dict[str, Any], list[Run]]:
    """Return the shared facts and the runs of a results file."""
    head = json.loads(path.read_text())
    return head, head.pop("runs")


def _text(head: Mapping[str, Any], runs: list[Run]) -> str:
    top = json.dumps(head, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    return f'{top},\n "runs": [\n{lines}\n ]\n}}\n'
