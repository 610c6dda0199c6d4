"""The quality study runs from pairs to pictures with a tiny model, and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model_folder

pytest.importorskip("trl")
ROOT = Path(__file__).parents[2]


def study(folder: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "bench" / "quality" / "study.py"), str(folder / "seeds.jsonl")]
    small = {"--train": "8", "--batch": "4", "--epochs": "1", "--layers": "1", "--rank": "2", "--corruptions": "1"}
    paths = {"--model": folder / "tiny-llama", "-o": folder / "out.json", "--page": folder / "page.md"}
    given = [str(item) for pair in (small | paths).items() for item in pair]
    done = subprocess.run([*command, *given, "--seeds", "0", *options], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_study_runs_and_resumes(tmp_path: Path) -> None:
    tiny_model_folder(tmp_path)
    tasks = [
        {"id": f"t{i}", "instruction": f"Count to {i}.", "instances": [{"input": "", "output": "one, " * (1 + i % 5)}]}
        for i in range(14)
    ]
    (tmp_path / "seeds.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    (tmp_path / "none.jsonl").write_text("")
    examples = ("--examples", str(tmp_path / "none.jsonl"))

    assert "[1/2] cleaning" in study(tmp_path, *examples, "--parts", "cleaning")
    assert "[3/17] arms: untrained" in study(tmp_path, *examples)  # what is there is not done again

    runs = {(run["part"], run["arm"]): run for run in json.loads((tmp_path / "out.json").read_text())["runs"]}
    assert len(runs) == 17
    orders = {run["facts"]["order"] for (part, _), run in runs.items() if part == "arms" and "facts" in run}
    assert len(orders) == 1  # the same pairs in the same order for every arm
    assert runs["arms", "full"]["facts"]["tokens"] == runs["arms", "both"]["facts"]["tokens"]
    assert runs["arms", "semantic"]["metrics"]["retrieval_xy_head"] >= 0
    assert runs["kept", "truth"]["facts"]["corrupted_left"] == 0
    assert runs["kept", "mutual"]["facts"]["steps"] == runs["kept", "everything"]["facts"]["steps"]
    assert "| plain SFT |" in (tmp_path / "page.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {"out_arms.png", "out_cleaning.png", "out_kept.png"}
