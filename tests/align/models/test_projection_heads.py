"""Trained projection heads outside of training: loaded by name, and in the scorer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

import main_align
import torch
from datasets import Dataset
from main_align.data.write import to_json
from main_align.errors import UserError
from main_align.models.projection_heads import FILE, AlignmentHead
from main_align.scoring.job import score_file
from main_align.scoring.scorer import Scorer
from main_align.training import MutualAlignmentConfig, MutualAlignmentTrainer

from tests.align.tiny_models import DEVICE, tiny_model_folder
from tests.align.training.step_gradients import PAIRS


def trained(folder: Path, **settings: object) -> MutualAlignmentTrainer:
    """A tiny model trained for a few steps, with its heads beside it in `folder`/out."""
    model = tiny_model_folder(folder)
    defaults = {"max_steps": 3, "learning_rate": 1e-2, "projection_dim": 8, "per_device_eval_batch_size": 64}
    defaults |= {"bf16": False, "use_cpu": DEVICE == "cpu", "report_to": [], "disable_tqdm": True}
    args = MutualAlignmentConfig(output_dir=str(folder / "out"), save_strategy="no", **(defaults | settings))
    data = Dataset.from_list(PAIRS)
    trainer = MutualAlignmentTrainer(str(model), args, train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MutualAlignmentTrainer]:
    folder = tmp_path_factory.mktemp("heads")
    trainer = trained(folder)
    return folder / "out", trainer


def test_the_heads_are_those_that_were_trained(run):
    folder, trainer = run
    heads = main_align.AlignmentHead.from_pretrained(folder)
    assert not any(weight.requires_grad for weight in heads.parameters())
    for name, weight in trainer._head.state_dict().items():
        assert torch.equal(heads.state_dict()[name], weight.cpu()), name
    assert not torch.equal(heads.x.weight, heads.y.weight)


def test_semantic_is_what_the_trainer_measures(run):
    """Mean over a batch of all pairs: log N minus the InfoNCE that the trainer reports on it."""
    folder, trainer = run
    distinct = [PAIRS[n] for n in _distinct()]
    expected = trainer.evaluate(Dataset.from_list(distinct))["eval_semantic"]
    rows = Scorer(folder, heads=folder).score(distinct)
    mean = sum(row["semantic"] for row in rows) / len(rows)
    assert math.log(len(rows)) - mean == pytest.approx(expected, abs=1e-4)
    plain = Scorer(folder).score(distinct)
    assert abs(plain[0]["semantic"] - rows[0]["semantic"]) > 1e-3
    assert plain[0]["nll_y"] == rows[0]["nll_y"]


def _distinct() -> list[int]:
    """Rows that share no side with another, which the trainer does not contrast."""
    seen: set[str] = set()
    kept = []
    for number, pair in enumerate(PAIRS):
        sides = {str(value) for value in pair.values()}
        if not sides & seen:
            kept.append(number)
        seen |= sides
    return kept


def test_a_score_file_has_the_same_scores_and_records_its_heads(run, tmp_path):
    folder, _ = run
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(to_json(pair) + "\n" for pair in PAIRS))
    heads = AlignmentHead.from_pretrained(folder)
    scorer = Scorer(folder, heads=heads)
    manifest = score_file(scorer, source, tmp_path / "o.jsonl")
    assert manifest["settings"]["scorer"]["heads"] == heads.digest()
    rows = scorer.score(PAIRS)
    written = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["semantic"] for row in written] == [row["semantic"] for row in rows]
    with pytest.raises(UserError, match=r"scorer\.heads was"):
        score_file(Scorer(folder), source, tmp_path / "o.jsonl")


def test_heads_that_cannot_be_loaded_are_refused_by_name(run, tmp_path):
    folder, _ = run
    with pytest.raises(UserError, match=f"no projection heads can be loaded from .*{FILE}"):
        AlignmentHead.from_pretrained(tmp_path)
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes()[:50])
    with pytest.raises(UserError, match="no projection heads can be loaded"):
        AlignmentHead.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"width 16, and the model's have 32"):
        Scorer(folder, heads=AlignmentHead(16, 4))


def test_a_model_trained_without_heads_is_refused(tmp_path):
    trained(tmp_path, projection_dim=0, max_steps=1)
    with pytest.raises(UserError, match="was trained without projection heads"):
        Scorer(tmp_path / "out", heads=tmp_path / "out")
