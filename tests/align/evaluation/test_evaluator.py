"""AlignmentEvaluator: the Scorer's own numbers, a model left as it was, and metrics that a trainer can select by."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from main_align import Scorer
from main_align.errors import UserError
from main_align.evaluation import AlignmentCallback, AlignmentEvaluator
from main_align.evaluation.evaluator import MEANS
from main_align.models.load import LoadedModel
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DataParallel
from transformers import Trainer, TrainingArguments

from ..tiny_models import byte_tokenizer, tiny_model

PAIRS = [{"instruction": f"What is {n} plus {n}?", "response": f"It is {2 * n}."} for n in range(6)]
TOKENIZER = byte_tokenizer()
TOKENIZER.pad_token = "<|endoftext|>"


def model(**config: Any) -> Any:
    return tiny_model(vocab=len(TOKENIZER), **config)


def test_metrics_are_the_means_of_the_scorer():
    network = model()
    rows = Scorer(LoadedModel(network, TOKENIZER, "m", None, "")).score(PAIRS)
    metrics = AlignmentEvaluator(PAIRS)(network, TOKENIZER)
    for name in MEANS:
        assert metrics[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-6)
    assert metrics["pairs"] == 6
    assert 0 <= metrics["retrieval"] <= 1


def test_pairs_that_cannot_be_scored_are_left_out():
    metrics = AlignmentEvaluator([*PAIRS, {"instruction": "No answer", "response": " "}])(model(), TOKENIZER)
    assert metrics["pairs"] == 6


def test_no_usable_pair_is_an_error():
    with pytest.raises(UserError, match="there is no held-out pair"):
        AlignmentEvaluator([])
    with pytest.raises(UserError, match="no held-out pair can be scored; the first: empty_response"):
        AlignmentEvaluator([{"instruction": "a", "response": ""}])(model(), TOKENIZER)


def test_the_model_is_left_as_it_was():
    network = model().train()
    network.set_attn_implementation("eager")
    network.model.layers[0].eval()
    modes = [module.training for module in network.modules()]
    ids = torch.arange(5, 25, device=network.device)[None]
    before = network(ids).logits
    AlignmentEvaluator(PAIRS)(network, TOKENIZER)
    assert [module.training for module in network.modules()] == modes
    assert network.config._attn_implementation == "eager"
    torch.testing.assert_close(network(ids).logits, before, rtol=0, atol=0)


def test_adapters_and_wrappers_are_seen_through():
    network = get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    merged = get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    merged.load_state_dict(network.state_dict())
    evaluator = AlignmentEvaluator(PAIRS)
    found = evaluator(DataParallel(network), TOKENIZER)
    assert found["mutual"] == pytest.approx(evaluator(merged.merge_and_unload(), TOKENIZER)["mutual"], abs=1e-5)
    assert found["mutual"] != pytest.approx(evaluator(model(), TOKENIZER)["mutual"], abs=1e-4)


@pytest.mark.parametrize("name", ["batch_tokens", "max_length"])
def test_numbers_below_one_are_refused_before_training(name):
    with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
        AlignmentEvaluator(PAIRS, **{name: 0})


def test_a_trainer_logs_the_metrics_and_keeps_the_best_model(tmp_path):
    texts = [TOKENIZER(f"{pair['instruction']} {pair['response']}").input_ids[:24] for pair in PAIRS]
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in texts])
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        logging_steps=1,
        learning_rate=0.05,
        load_best_model_at_end=True,
        metric_for_best_model="eval_heldout_mutual",
        greater_is_better=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model(), arguments, train_dataset=rows, eval_dataset={"a": rows, "b": rows}, processing_class=TOKENIZER
    )
    trainer.add_callback(AlignmentCallback(trainer, AlignmentEvaluator(PAIRS)))
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "eval_heldout_mutual" in entry]
    assert [entry["step"] for entry in history] == [1, 2]  # once a step, though there are two evaluation sets
    values = [entry["eval_heldout_mutual"] for entry in history]
    assert values[0] != values[1]
    assert trainer.state.best_metric == max(values)
    assert AlignmentEvaluator(PAIRS)(trainer.model, TOKENIZER)["mutual"] == pytest.approx(max(values), abs=1e-6)


def test_a_metric_whose_worst_model_would_be_kept_is_refused(tmp_path):
    """transformers takes every metric whose name does not end in "loss" for one that should be high."""
    settings = {"save_strategy": "no", "report_to": [], "metric_for_best_model": "heldout_nll_y_given_x"}
    for greater, refused in ((True, True), (False, False)):
        arguments = TrainingArguments(output_dir=str(tmp_path), greater_is_better=greater, **settings)
        trainer = Trainer(model(), arguments)
        with pytest.raises(UserError, match="greater_is_better=False") if refused else nullcontext():
            AlignmentCallback(trainer, AlignmentEvaluator(PAIRS))
