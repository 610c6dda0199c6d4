"""The model card of a trained model."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from main_align.training import AlignmentMixin, MutualAlignmentTrainer
from transformers import Trainer
from trl import SFTTrainer

from tests.align.tiny_models import byte_tokenizer, tiny_model
from tests.align.training.trainers import ROWS, config


@pytest.mark.parametrize("base", [SFTTrainer, Trainer])
def test_the_model_card_names_the_method_and_its_terms(tmp_path, base):
    mixed = MutualAlignmentTrainer if base is SFTTrainer else type("Mixed", (AlignmentMixin, Trainer), {})
    args = config(tmp_path, semantic_weight=0.25, intentional_weight=0.0, directions="forward")
    trainer = mixed(tiny_model(), args, train_dataset=ROWS, processing_class=byte_tokenizer())
    for _ in range(2):
        trainer.create_model_card(model_name="mine")
    card = (tmp_path / "README.md").read_text()
    assert card.count("## Mutual alignment") == 1
    assert "arxiv.org/abs/2504.12913" in card
    assert "| `semantic` | 0.25 |" in card
    assert "| `forward` | 1 | -log p(y" in card
    assert not any(f"`{name}`" in card for name in ("reverse", "intentional", "duality_gap"))
    if base is SFTTrainer:
        assert "a method introduced in [Mutual Alignment Is Necessary" in card
