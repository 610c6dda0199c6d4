"""The model card of a trained model: method, terms, weights and held-out scores."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from huggingface_hub import ModelCard
from main_align.evaluation import AlignmentCallback, AlignmentEvaluator
from main_align.training import AlignmentMixin, MutualAlignmentTrainer
from main_align.training.trainer.model_card import held_out_scores
from transformers import Trainer, TrainerState
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
    synthetic = sum(map(bool, ROWS["synthetic"]))
    assert f"Trained on 8 pairs ({synthetic} of them synthetic) of an instruction" in card
    assert "| `semantic` | 0.25 |" in card
    assert "| `forward` | 1 | -log p(y" in card
    assert not any(f"`{name}`" in card for name in ("reverse", "intentional", "duality_gap"))
    if base is SFTTrainer:
        assert "a method introduced in [Mutual Alignment Is Necessary" in card


def entry(step, **metrics):
    return {"step": step, "epoch": 1.0, **metrics}


def test_the_scores_are_those_of_the_model_that_is_kept():
    state = TrainerState(global_step=4)
    assert held_out_scores(state) == (0, [])
    state.log_history = [
        entry(2, loss=1.0),
        entry(2, eval_nll_y_given_x=3.0, eval_runtime=1.0, eval_loss_forward=3.0),
        entry(2, eval_heldout_mutual=1.5, eval_heldout_mutual_novel=1.25, eval_heldout_pairs=6.0),
        entry(4, eval_heldout_mutual=1.0, eval_my_set_retrieval=0.5),
        entry(4, train_loss=1.0),
    ]
    last = [("heldout", "mutual", 1.0), ("my_set", "retrieval", 0.5)]
    assert held_out_scores(state) == (4, last)
    state.best_model_checkpoint, state.best_global_step = "out/checkpoint-2", 2
    best = [("eval", "nll_y_given_x", 3.0), ("heldout", "mutual", 1.5), ("heldout", "mutual_novel", 1.25)]
    assert held_out_scores(state) == (2, best)


def test_the_card_has_the_held_out_scores_as_text_and_as_metadata(tmp_path):
    args = config(tmp_path, eval_strategy="steps", eval_steps=1)
    model = tiny_model()
    trainer = MutualAlignmentTrainer(
        model, args, train_dataset=ROWS, eval_dataset=ROWS, processing_class=byte_tokenizer()
    )
    trainer.add_callback(AlignmentCallback(trainer, AlignmentEvaluator(list(ROWS))))
    trainer.train()
    for _ in range(2):
        trainer.create_model_card(model_name="mine")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.count("### Held-out scores") == 1
    assert "Measured after step 2 of 2." in card.text
    logged = {name: value for entry in trainer.state.log_history if entry["step"] == 2 for name, value in entry.items()}
    results = {(each.dataset_name, each.metric_type): each.metric_value for each in card.data.eval_results}
    for data, name, key in (
        ("heldout", "mutual", "eval_heldout_mutual"),
        ("heldout", "retrieval", "eval_heldout_retrieval"),
        ("eval", "nll_y_given_x", "eval_nll_y_given_x"),
        ("eval", "mi", "eval_mi"),
    ):
        assert results[data, name] == pytest.approx(logged[key])
        assert f"| {data} | `{name}` | {logged[key]:.4g} |" in card.text
    assert card.data.model_name == "mine"
    assert "mutual-alignment" in card.data.tags
