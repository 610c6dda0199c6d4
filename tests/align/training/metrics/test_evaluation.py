"""Evaluation: metrics depend on the data set alone, not on batches, names or earlier evaluations."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from datasets import Dataset, IterableDataset
from main_align.training import AlignmentArguments, AlignmentMixin, MutualAlignmentTrainer
from main_align.training.dataset.packing import PackedPairs
from main_align.training.metrics import evaluation
from transformers import Trainer, TrainingArguments

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model
from tests.align.training.step_gradients import PAIRS
from tests.align.training.trainers import ROWS, config, gradients_of, trainer_with, untimed

TERMS = {"semantic", "intentional", "structural", "mi", "accuracy_x_to_y", "accuracy_y_to_x"}
TERMS |= {"loss", "nll_y_given_x", "nll_x_given_y", "synthetic_weight"}
CONTRIBUTIONS = {"loss_forward", "loss_reverse", "loss_semantic", "loss_intentional", "loss_structural"}
FIVE = Dataset.from_list(PAIRS[:5])


def evaluated(folder, dataset=FIVE, size=8, **settings):  # type: ignore[no-untyped-def]
    trainer = trainer_with(folder, per_device_eval_batch_size=size, **({"duality_gap_weight": 0.4} | settings))
    return untimed(trainer.evaluate(dataset))


@pytest.mark.parametrize(
    "cut", [{"size": 1}, {"size": 2}, {"size": 4}, {"size": 2, "eval_packing": True, "max_length": 100}]
)
def test_metrics_do_not_depend_on_the_batch_size(tmp_path, cut):
    whole, cut_up = evaluated(tmp_path), evaluated(tmp_path, **cut)
    assert whole.keys() == cut_up.keys() == TERMS | CONTRIBUTIONS | {"duality_gap", "loss_duality_gap"}
    for name, value in whole.items():
        assert cut_up[name] == pytest.approx(value, rel=1e-5), name


def test_no_row_is_dropped_from_an_evaluation(tmp_path):
    """dataloader_drop_last is about the steps of training."""
    whole, complete = evaluated(tmp_path), evaluated(tmp_path, size=4, dataloader_drop_last=True)
    assert complete == pytest.approx(whole, rel=1e-5)
    assert trainer_with(tmp_path, dataloader_drop_last=True).predict(FIVE).metrics.keys() > {"test_loss"}


def test_the_loss_of_an_evaluation_is_that_of_the_set_as_one_batch(tmp_path):
    trainer = trainer_with(tmp_path, dataset=FIVE, per_device_train_batch_size=5, duality_gap_weight=0.4)
    (batch,) = trainer.get_train_dataloader()
    with torch.no_grad():
        wanted = float(trainer.compute_loss(trainer.model.train(), batch))
    metrics = evaluated(tmp_path, size=2)
    assert metrics["loss"] == pytest.approx(wanted, rel=1e-5)
    assert sum(metrics[name] for name in CONTRIBUTIONS | {"loss_duality_gap"}) == pytest.approx(wanted, rel=1e-5)


def test_likelihoods_do_not_depend_on_their_weights(tmp_path):
    whole = evaluated(tmp_path)
    for weights in ({"reverse_weight": 0.0}, {"synthetic_weight": 0.0, "synthetic_weight_schedule": "constant"}):
        found = evaluated(tmp_path, duality_gap_weight=0.0, **weights)
        for name in ("nll_y_given_x", "nll_x_given_y"):
            assert found[name] == pytest.approx(whole[name], rel=1e-5)


def test_a_large_set_is_contrasted_in_equal_groups(tmp_path, monkeypatch):
    whole, halves = (
        evaluated(tmp_path, ROWS),
        [evaluated(tmp_path, Dataset.from_list(PAIRS[n : n + 4])) for n in (0, 4)],
    )
    monkeypatch.setattr(evaluation, "GROUP", 7)
    for size in (1, 8):
        grouped = evaluated(tmp_path, ROWS, size=size)
        for name in ("semantic", "structural", "mi"):
            assert grouped[name] == pytest.approx((halves[0][name] + halves[1][name]) / 2, rel=1e-5)
        assert grouped["nll_y_given_x"] == pytest.approx(whole["nll_y_given_x"], rel=1e-5)


def test_each_named_data_set_has_its_own_metrics(tmp_path):
    trainer = trainer_with(tmp_path, eval_dataset={"few": FIVE, "all": ROWS})
    alone = {"few": untimed(trainer.evaluate(FIVE)), "all": untimed(trainer.evaluate(ROWS))}
    assert alone["few"]["semantic"] != pytest.approx(alone["all"]["semantic"])
    both = [trainer.evaluate(), trainer.evaluate({"few": FIVE, "all": ROWS})]
    for metrics in both:
        for name, wanted in alone.items():
            found = untimed({k: v for k, v in metrics.items() if k.startswith(f"eval_{name}_")}, f"eval_{name}")
            assert found == pytest.approx(wanted)
    assert untimed(trainer.evaluate(FIVE, metric_key_prefix="dev"), "dev") == pytest.approx(alone["few"])
    assert untimed(trainer.evaluate(ROWS)) == pytest.approx(alone["all"])
    assert untimed(trainer.evaluate("few")) == pytest.approx(alone["few"])
    logged = [entry for entry in trainer.state.log_history if "dev_semantic" in entry]
    assert len(logged) == 1
    assert not any(name.startswith("eval") for name in logged[0])


def test_predict_takes_raw_pairs(tmp_path):
    trainer = trainer_with(tmp_path)
    found = trainer.predict(FIVE)
    assert found.predictions is None
    assert untimed(found.metrics, "test") == pytest.approx(untimed(trainer.evaluate(FIVE)))


@pytest.mark.parametrize(
    ("packing", "evaluation", "packed"), [(True, False, False), (False, True, True), (True, None, True)]
)
def test_the_settings_decide_whether_an_evaluation_is_packed(tmp_path, packing, evaluation, packed):
    settings = {"packing": packing, "eval_packing": evaluation, "max_length": 100}
    trainer = trainer_with(tmp_path, eval_dataset=ROWS, **settings)
    mixed = type("Mixed", (AlignmentMixin, Trainer), {})
    plain = mixed(
        tiny_model(),
        config(tmp_path, **settings),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        processing_class=byte_tokenizer(),
    )
    for each in (trainer, plain):
        assert isinstance(each.eval_dataset, PackedPairs) == packed
        assert isinstance(each.train_dataset, PackedPairs) == packing
        assert isinstance(each._prepared(ROWS, "eval"), PackedPairs) == packed


def test_a_stream_is_evaluated_once(tmp_path):
    trainer = trainer_with(tmp_path, per_device_eval_batch_size=2)
    wanted = untimed(trainer.evaluate(FIVE))
    assert untimed(trainer.evaluate(IterableDataset.from_generator(lambda: iter(PAIRS[:5])))) == pytest.approx(wanted)


def test_an_evaluation_does_not_change_the_training_log(tmp_path):
    """Tokens and metrics of the training are those that they would be without an evaluation in between."""
    logs = []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        torch.manual_seed(0)
        trainer = trainer_with(tmp_path, eval_dataset=ROWS, logging_steps=2, **settings)
        trainer.train()
        logs.append([e for e in trainer.state.log_history if not any(name.startswith("eval_") for name in e)])
    for plain, between in zip(*logs, strict=True):
        assert plain.keys() == between.keys()
        assert plain.get("num_tokens") == between.get("num_tokens")
        assert plain.get("semantic") == between.get("semantic")


def test_the_evaluation_loss_includes_what_a_subclass_adds(tmp_path):
    class Adding(MutualAlignmentTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            return loss + len(inputs["pairs"]["row"])

    args = config(tmp_path, per_device_eval_batch_size=4)
    trainer = Adding(tiny_model(), args, train_dataset=ROWS, processing_class=byte_tokenizer())
    plain = trainer_with(tmp_path).evaluate(FIVE)["eval_loss"]
    assert trainer.evaluate(FIVE)["eval_loss"] == pytest.approx(plain + (4 * 4 + 1) / 5, rel=1e-5)


def test_the_plain_trainer_evaluates_the_same(tmp_path):
    mixed = type("Mixed", (AlignmentMixin, Trainer), {})
    args = TrainingArguments(str(tmp_path), use_cpu=DEVICE == "cpu", report_to=[], per_device_eval_batch_size=2)
    trainer = mixed(
        tiny_model(),
        args,
        eval_dataset=FIVE,
        processing_class=byte_tokenizer(),
        alignment=AlignmentArguments(projection_dim=0),
    )
    wanted = trainer_with(tmp_path, projection_dim=0).evaluate(FIVE)
    assert untimed(trainer.evaluate()) == pytest.approx(untimed(wanted), rel=1e-5)


def test_another_data_set_can_be_evaluated(tmp_path):
    trainer = trainer_with(tmp_path)
    result = trainer.evaluate(Dataset.from_list(PAIRS[:3]))
    assert result["eval_nll_y_given_x"] > 0
    assert gradients_of(trainer.model) == {}
