"""ScoreStage, without Ray: tables in, tables with scores out."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from main_align.errors import UserError
from main_align.ray import ScoreStage
from main_align.ray.actors import RayActors
from main_align.scoring.bank import Bank
from main_align.scoring.columns import COLUMNS
from main_align.scoring.scorer import Scorer

from tests.align.tiny_models import DEVICE, tiny_model_folder

PAIRS = [{"instruction": f"say {n}", "response": f"word {n * n}", "status": "mine"} for n in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def bank(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    Bank.of(Scorer(model, device=DEVICE).measure(PAIRS)).save(path)
    return path


def test_batches_of_any_size_have_the_scores_of_the_whole(model: Path, bank: Path) -> None:
    wanted = Scorer(model, device=DEVICE).score(PAIRS, bank=Bank.load(bank, DEVICE))
    stage, table = (
        ScoreStage(model, bank=bank, device=DEVICE),
        pa.Table.from_pylist([*PAIRS, {"instruction": "alone", "response": ""}]),
    )
    for size in (1, 5, 13):
        parts = [stage(table.slice(start, size)) for start in range(0, 13, size)]
        rows = pa.concat_tables(parts).to_pylist()
        assert rows[-1]["mutual"] is None
        assert rows[-1]["main_status"] == "empty_response"
        for row, want, pair in zip(rows[:-1], wanted, PAIRS, strict=True):
            assert {name: row[name] for name in pair} == pair
            assert row["main_status"] == "ok"
            for name in ("mutual", "nll_y", "semantic", "structural"):
                assert row[name] == pytest.approx(want[name], abs=1e-5), name
    assert set(rows[0]) == (set(COLUMNS) - {"id"}) | set(PAIRS[0]) | {"main_status"}


def test_no_column_of_the_table_is_doubled(model: Path, bank: Path) -> None:
    table = pa.Table.from_pylist([{**pair, "main_status": "mine too"} for pair in PAIRS])
    scored = ScoreStage(model, bank=bank, device=DEVICE)(table)
    assert len(set(scored.column_names)) == len(scored.column_names)
    assert scored.select(table.column_names) == table
    assert scored["main_main_status"].to_pylist() == ["ok"] * len(PAIRS)


def test_the_bank_of_another_model_is_refused(model: Path, bank: Path) -> None:
    with pytest.raises(UserError, match="the bank was made by another scorer: dtype was 'float32', now 'bfloat16'"):
        ScoreStage(model, bank=bank, device=DEVICE, dtype="bfloat16")


def test_a_ray_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray \(import of ray halted.*\): pip install 'main-kernels\[ray\]'"):
        RayActors(1, {}, print)


def test_ray_leaves_the_handler_of_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    monkeypatch.setattr(RayActors, "_start", lambda self: SimpleNamespace(load=SimpleNamespace(remote=print)))
    monkeypatch.setattr(RayActors, "_loaded", lambda self, loading: {})
    before = signal.getsignal(signal.SIGTERM)
    try:
        RayActors(1, {}, print).__enter__()
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)
