"""The run folder, and the scorer of the filter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from main_align.errors import UserError
from main_align.loop.model_pair import ScoringModels
from main_align.loop.mutual_filter import MutualScorer
from main_align.loop.report import write_report
from main_align.loop.run_dir import RunDir
from main_align.models.load import LoadedModel
from main_align.scoring.scorer import Scorer

from tests.align.tiny_models import byte_tokenizer, tiny_model


def test_a_run_dir_belongs_to_one_run_and_its_settings(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "deep" / "run")
    folder.lock()
    with pytest.raises(UserError, match="another run is using this folder"):
        RunDir(folder.path).lock()
    folder.claim({"config": {"rounds": 1}}, restart=False)
    folder.claim({"config": {"rounds": 1}}, restart=False)
    with pytest.raises(UserError, match=r"config\.rounds was 1, now 2.*--restart"):
        folder.claim({"config": {"rounds": 2}}, restart=False)
    folder.partial_dir("00-a").mkdir()
    (folder.partial_dir("00-a") / "rank-0.journal").touch()
    (folder.partial_dir("00-a") / "out").write_text("x")
    assert not folder.is_finished("00-a")
    folder.finish("00-a", {"n": 1})
    assert folder.is_finished("00-a")
    assert folder.read_manifest("00-a") == {"n": 1}
    assert sorted(path.name for path in folder.stage_dir("00-a").iterdir()) == ["out", "stage.json"]
    (folder.path / "notes.txt").write_text("mine")
    folder.claim({"config": {"rounds": 2}}, restart=True)
    assert not folder.is_finished("00-a")
    assert (folder.path / "notes.txt").read_text() == "mine"
    folder.unlock()
    RunDir(folder.path).lock()


def test_names_that_are_not_unicode_are_kept(tmp_path: Path) -> None:
    folder, settings = RunDir(tmp_path / "run"), {"config": {"seed_pairs": "caf\udce9.jsonl"}}
    folder.lock()
    for _ in range(2):
        folder.claim(settings, restart=False)
    write_report(tmp_path / "report.json", settings)
    assert json.loads((tmp_path / "report.json").read_text()) == settings


def test_stages_left_by_a_killed_restart_are_deleted(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.lock()
    folder.claim({"a": 1}, restart=False)
    folder.partial_dir("00-a").mkdir()
    folder.finish("00-a", {})
    (tmp_path / "report.png.tmp").touch()  # left by an earlier kill
    (tmp_path / "run.json").unlink()  # where a restart was killed
    folder.unlock()
    folder.lock()
    folder.claim({"a": 2}, restart=False)
    assert not folder.is_finished("00-a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "run.json"]


def test_a_folder_with_other_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"contains other files \(thesis.tex\)"):
        RunDir(tmp_path).lock()
    with pytest.raises(UserError, match="is a file"):
        RunDir(tmp_path / "thesis.tex").lock()
    folder = RunDir(tmp_path / "run")
    folder.lock()
    (folder.path / "run.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        folder.claim({}, restart=False)


def test_the_filter_scores_each_direction_with_its_own_model() -> None:
    tokenizer = byte_tokenizer()
    models = [tiny_model(vocab=len(tokenizer), seed=seed) for seed in (0, 1)]
    forward, reverse = (LoadedModel(model, tokenizer, f"m{n}", None, f"d{n}") for n, model in enumerate(models))
    rows = [{"instruction": f"ask {n}", "response": f"tell {n * n}"} for n in range(5)]
    used: list[str] = []
    both = MutualScorer(ScoringModels(forward, reverse, used.append), bank=4).score(rows)
    assert used[:2] == ["forward", "reverse"]
    alone = [Scorer(model, bank=4).score(rows) for model in (forward, reverse)]
    for row, f, r in zip(both, *alone, strict=True):
        for name in ("nll_y_given_x", "nll_y", "nll_end", "pmi_forward", "semantic", "structural"):
            assert row[name] == f[name]
        for name in ("nll_x_given_y", "nll_x", "pmi_reverse"):
            assert row[name] == r[name] != f[name]
        total = np.sqrt(row["tokens_y"]) * f["pmi_forward"] + np.sqrt(row["tokens_x"]) * r["pmi_reverse"]
        assert row["mutual"] == pytest.approx(total / 2)
        assert row["mutual_novel"] == pytest.approx(row["mutual"])  # nothing is copied
