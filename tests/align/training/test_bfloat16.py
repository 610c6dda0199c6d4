"""Training on a CPU without bfloat16 instructions: float32 by default, and one warning for an explicit bfloat16."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

import torch
from datasets import Dataset
from main_align.loop import LoopConfig
from main_align.loop.plan import make_plan
from main_align.loop.train_stage import make_trainer_config
from main_align.models import devices
from main_align.training import AlignmentMixin, MutualAlignmentConfig, MutualAlignmentTrainer
from transformers import Trainer, TrainingArguments

from tests.align.tiny_models import byte_tokenizer, tiny_model
from tests.align.training.step_gradients import PAIRS


class AlignedTrainer(AlignmentMixin, Trainer):
    pass


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fast(request, monkeypatch) -> bool:
    """A CPU with and one without the instructions."""
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda: request.param)
    devices._warn.cache_clear()
    return request.param


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == devices.__name__]


def test_the_default_dtype_is_the_faster_one(fast, tmp_path):
    settings = {"output_dir": str(tmp_path), "use_cpu": True}
    assert MutualAlignmentConfig(**settings).bf16 is fast
    assert MutualAlignmentConfig(**settings, fp16=True).bf16 is False
    for asked in (True, False):
        assert MutualAlignmentConfig(**settings, bf16=asked).bf16 is asked


@pytest.mark.parametrize("kind", [AlignedTrainer, MutualAlignmentTrainer])
def test_an_explicit_bfloat16_warns_about_its_cost(fast, tmp_path, caplog, kind):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": []}
    plain = kind is AlignedTrainer
    for asked in (False, True):
        args = (TrainingArguments if plain else MutualAlignmentConfig)(**settings, bf16=asked)
        with caplog.at_level(logging.WARNING):
            kind(tiny_model(), args, train_dataset=Dataset.from_list(PAIRS), processing_class=byte_tokenizer())
        assert warnings_of(caplog) == ([devices.SLOW_BFLOAT16] if asked and not fast else [])


def test_the_loop_uses_the_fast_dtype(fast, tmp_path):
    config = LoopConfig(seed_pairs="s", output_dir=str(tmp_path))
    cpu = torch.device("cpu")
    dtype = str(devices.pick_dtype(config.dtype, cpu)).removeprefix("torch.")
    assert make_trainer_config(config, make_plan(config)[0], str(tmp_path), dtype, cpu).bf16 is fast
