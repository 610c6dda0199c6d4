"""The examples of pipelines run in each library that is installed, and each gives the same scores."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from main_align.scoring.bank import Bank
from main_align.scoring.scorer import Scorer

from tests.align.tiny_models import DEVICE, tiny_model_folder

EXAMPLES = Path(__file__).parents[3] / "examples"
PAIRS = [{"instruction": f"say {n}", "response": f"word {n * n}"} for n in range(9)]

Rows = list[dict[str, Any]]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny_model_folder(tmp_path))


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return str(path)


@pytest.fixture
def scored(model: str, tmp_path: Path) -> Rows:
    """The rows that every pipeline must give; their bank is in reference.safetensors."""
    scorer = Scorer(model, device=DEVICE)
    Bank.of(scorer.measure(PAIRS)).save(tmp_path / "reference.safetensors")
    return scorer.score(PAIRS, bank=Bank.load(tmp_path / "reference.safetensors", DEVICE))


def assert_scores(rows: Rows, wanted: Rows) -> None:
    assert len(rows) == len(wanted)
    rows.sort(key=lambda row: row["instruction"])  # Ray's order is its own
    for row, want in zip(rows, wanted, strict=True):
        assert row["status"] == "ok"
        for name in ("mutual", "semantic", "structural"):
            assert row[name] == pytest.approx(want[name], abs=1e-5), name


def read(files: list[Path]) -> Rows:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("library", ["datasets", "datatrove", "ray"])
def test_a_pipeline_scores_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, model: str, source: str, scored: Rows
) -> None:
    for package in {"datatrove": ("datatrove", "orjson")}.get(library, (library,)):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    runpy.run_path(str(EXAMPLES / "score_pipeline.py"))["PIPELINES"][library](source, str(out), model)
    rows = read([out] if library == "datasets" else sorted(out.glob("*.json*")))
    assert_scores([row | row.pop("metadata", {}) for row in rows], scored)


@pytest.mark.longest
def test_a_nemo_curator_stage_scores_every_row(tmp_path: Path, model: str, source: str, scored: Rows) -> None:
    pytest.importorskip("nemo_curator")
    run = runpy.run_path(str(EXAMPLES / "nemo_curator_stage.py"))["run"]
    run(source, str(tmp_path / "out"), str(tmp_path / "reference.safetensors"), model)
    assert_scores(read(sorted((tmp_path / "out").glob("*.jsonl"))), scored)


@pytest.mark.longest
def test_a_data_juicer_filter_keeps_the_scores_in_its_range(
    tmp_path: Path, model: str, source: str, scored: Rows
) -> None:
    for package in ("data_juicer", "aiohttp"):  # which data_juicer imports and does not require
        pytest.importorskip(package)
    import yaml

    recipe = yaml.safe_load((EXAMPLES / "data_juicer.yaml").read_text())
    recipe["custom_operator_paths"] = [str(EXAMPLES / "data_juicer_filter.py")]
    recipe |= {"dataset_path": source, "export_path": str(tmp_path / "out" / "kept.jsonl")}
    lowest = sorted(row["mutual"] for row in scored)[4] - 1e-4
    bank = str(tmp_path / "reference.safetensors")
    recipe["process"][0]["main_align_filter"] |= {"model": model, "bank": bank, "min_score": lowest}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # a process of its own, since data_juicer replaces sys.stdout
    command = [sys.executable, "-m", "data_juicer.tools.process_data", "--config", str(tmp_path / "recipe.yaml")]
    subprocess.run(command, check=True, capture_output=True)
    rows = [row | row.pop("__dj__stats__") for row in read([tmp_path / "out" / "kept.jsonl"])]
    wanted = [row | pair for row, pair in zip(scored, PAIRS, strict=True) if row["mutual"] >= lowest]
    assert len(wanted) == 5
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in wanted]
    assert_scores(rows, wanted)
