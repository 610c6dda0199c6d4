"""examples/score_pipeline.py runs in each library that is installed, and each gives the same scores."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from main_align.scoring.bank import Bank
from main_align.scoring.scorer import Scorer

from tests.align.tiny_models import tiny_model_folder

SCRIPT = Path(__file__).parents[3] / "examples" / "score_pipeline.py"
PAIRS = [{"instruction": f"say {n}", "response": f"word {n * n}"} for n in range(9)]


@pytest.mark.parametrize("library", ["datasets", "datatrove", "ray"])
def test_a_pipeline_scores_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    for package in {"datatrove": ("datatrove", "orjson")}.get(library, (library,)):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    model = str(tiny_model_folder(tmp_path))
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "pairs.jsonl"
    source.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    runpy.run_path(str(SCRIPT))["PIPELINES"][library](str(source), str(tmp_path / "out"), model)
    files = [tmp_path / "out"] if library == "datasets" else sorted((tmp_path / "out").glob("*.json*"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    rows = [row | row.pop("metadata", {}) for row in rows]
    scorer = Scorer(model)
    wanted = scorer.score(PAIRS, bank=Bank.of(scorer.measure(PAIRS)))
    assert len(rows) == len(PAIRS)
    rows.sort(key=lambda row: row["instruction"])  # Ray's order is its own
    for row, want in zip(rows, wanted, strict=True):
        for name in ("mutual", "semantic", "structural"):
            assert row[name] == pytest.approx(want[name], abs=1e-5), name
        assert row["status"] == "ok"
