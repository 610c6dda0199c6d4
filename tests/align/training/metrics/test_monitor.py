"""The training log: likelihoods, contrasts and the synthetic weight of every log line."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from datasets import Dataset
from main_align.training.metrics import monitor

from tests.align.training.step_gradients import PAIRS
from tests.align.training.trainers import ROWS, trainer_with, untimed

CONTRASTS = {"semantic", "intentional", "structural", "mi", "accuracy_x_to_y", "accuracy_y_to_x"}


def test_training_likelihoods_leave_out_tokens_of_weight_0(tmp_path):
    """Synthetic pairs of weight 0 are not measured; they must not count as pairs of likelihood 1."""
    settings = {
        "synthetic_weight": 0.0,
        "synthetic_weight_schedule": "constant",
        "per_device_train_batch_size": 8,
        "max_steps": 1,
    }
    trainer = trainer_with(tmp_path, **settings)
    seeds = untimed(trainer.evaluate(Dataset.from_list([pair for pair in PAIRS if not pair.get("synthetic")])))
    trainer.train()
    assert trainer.state.log_history[0]["nll_y_given_x"] == pytest.approx(seeds["nll_y_given_x"], rel=1e-5)


@pytest.mark.parametrize("rows", [5, 7])
def test_contrast_of_micro_batches_is_logged_by_pairs(tmp_path, rows):
    """Four pairs and three count as seven; a single pair has no contrast, so it is not part of the mean."""
    settings = {
        "contrast_across_accumulation": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    settings |= {"max_steps": 1, "train_sampling_strategy": "sequential"}
    trainer = trainer_with(tmp_path, dataset=Dataset.from_list(PAIRS[:rows]), **settings)
    four, rest = (untimed(trainer.evaluate(Dataset.from_list(part))) for part in (PAIRS[:4], PAIRS[4:rows]))
    trainer.train()
    for name in CONTRASTS:
        wanted = four[name] if rows == 5 else (4 * four[name] + 3 * rest[name]) / 7
        assert trainer.state.log_history[0][name] == pytest.approx(wanted, rel=1e-5), name


def test_the_token_rate_does_not_include_set_up(tmp_path, monkeypatch):
    """Neither before the first step of a training nor in an evaluation. The clock is advanced by hand."""
    clock = [0.0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: clock[0])
    trainer = trainer_with(tmp_path, eval_dataset=ROWS, eval_strategy="steps", eval_steps=1, eval_on_start=True)

    def slowed(name, seconds):  # type: ignore[no-untyped-def]
        method = getattr(trainer, name)

        def call(*args, **options):  # type: ignore[no-untyped-def]
            clock[0] += seconds
            return method(*args, **options)

        monkeypatch.setattr(trainer, name, call)

    for name, seconds in (("create_optimizer_and_scheduler", 100), ("prediction_step", 1000), ("training_step", 2)):
        slowed(name, seconds)
    before = 0
    for _ in range(2):
        clock[0] += 10_000
        trainer.train()
        for entry in trainer.state.log_history:
            if "tokens_per_second" in entry:
                assert entry["tokens_per_second"] == pytest.approx((entry["num_tokens"] - before) / 2)
                before = entry["num_tokens"]
    assert before


def test_the_logged_synthetic_weight_is_the_mean_over_steps(tmp_path):
    """The last step of an epoch has fewer micro-batches, and counts as much as the others in the loss."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "logging_steps": 2}
    settings |= {"train_sampling_strategy": "sequential"}
    settings |= {"synthetic_weight_schedule": "linear", "synthetic_weight": 0.8}
    dataset = Dataset.from_list([PAIRS[0] | {"synthetic": number % 2 == 0} for number in range(8)])
    trainer = trainer_with(tmp_path, dataset=dataset, max_steps=2, **settings)
    trainer.train()
    assert trainer.state.log_history[0]["synthetic_weight"] == pytest.approx((0 + 0.4) / 2)


def test_the_synthetic_weight_is_logged_if_there_are_synthetic_pairs(tmp_path):
    trainer = trainer_with(tmp_path)
    trainer.train()
    seed_loss, written = trainer._synthetic_weight.means.tolist()
    assert trainer.synthetic_weight == pytest.approx(seed_loss / (seed_loss + written))
    assert "synthetic_weight" in trainer.state.log_history[0]
    only_seeds = Dataset.from_list([{k: pair[k] for k in ("prompt", "completion")} for pair in PAIRS])
    trainer = trainer_with(tmp_path, dataset=only_seeds)
    trainer.train()
    assert "synthetic_weight" not in trainer.state.log_history[0]


def test_deepspeed_sees_no_backward_before_that_of_the_step(tmp_path, monkeypatch):
    """Its hooks on the model's outputs end a step's backward, so the gradients of the terms are not measured."""
    trainer = trainer_with(tmp_path)
    (batch, *_) = trainer.get_train_dataloader()
    trainer.is_deepspeed_enabled, trainer.state.logging_steps = True, 1
    monkeypatch.setattr("torch.autograd.grad", None)
    trainer.compute_loss(trainer.model.train(), batch).backward()
    assert "nll_y_given_x" in trainer._monitor._meter.read()
