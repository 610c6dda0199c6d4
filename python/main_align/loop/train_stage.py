"""A stage in which one direction trains, by MutualAlignmentTrainer; its model is saved as safetensors.

A stage that was killed starts again from the checkpoint it began with: the trainer's own checkpoints
are switched off (they hold pickled optimiser states), a stage is short, and so the result is the same.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from ..data.atomic import (
    atomic_write,
)
from ..data.write import (
    to_json,
)
from ..errors import UserError
from ..progress import (
    Progress,
)
from .config import LoopConfig, check_names
from .distributed import Processes
from .plan import Stage

LOG = "log.jsonl"
# MAIN's loss is the supervised one; the alignment terms are there for those who give them a weight.
DEFAULTS: Mapping[str, Any] = {
    "semantic_weight": 0.0,
    "intentional_weight": 0.0,
    "structural_weight": 0.0,
    "over_length": "drop",
    "num_train_epochs": 1.0,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "report_to": "none",
}


def check_training(config: LoopConfig, stage: Stage, dtype: str, device: torch.device) -> None:
    """Raise UserError for a key of `training` that MutualAlignmentConfig does not have, or a value it refuses."""
    from ..training import MutualAlignmentConfig
    from ..training.settings import check_settings

    known = [item.name for item in fields(MutualAlignmentConfig) if item.init]
    check_names(config.training, known, "training")
    settings = arguments(config, stage, config.output_dir, dtype, device)
    settings.check()
    check_settings(settings, sft=True)


def arguments(config: LoopConfig, stage: Stage, folder: str, dtype: str, device: torch.device) -> Any:
    """The MutualAlignmentConfig of a training stage. Raises UserError for values that it refuses."""
    from ..training import MutualAlignmentConfig

    settings = {**DEFAULTS, "bf16": dtype == "bfloat16", "fp16": dtype == "float16", **config.training}
    if stage.round == 0:
        settings["num_train_epochs"] = config.warmup_epochs
        settings["max_steps"] = -1
    try:
        return MutualAlignmentConfig(
            output_dir=folder,
            directions=stage.direction,
            seed=stage_seed(config, stage),
            max_length=config.max_length,
            synthetic_weight_schedule=config.alpha_schedule,
            synthetic_weight=float(config.alpha),
            use_cpu=device.type == "cpu",
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"training: {error}") from error


def stage_seed(config: LoopConfig, stage: Stage) -> int:
    """Another seed for each stage, the same in every run."""
    return config.seed * 1000 + stage.number


def train(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    settings: Mapping[str, Any],
    folder: Path,
    processes: Processes,
    say: Callable[[Progress], None],
) -> dict[str, Any]:
    """Train `model` in place on `rows`, write the log into `folder`, and return what the manifest says of it.

    `settings` are config, stage, dtype and device, as `arguments` takes them.
    """
    from ..training import MutualAlignmentTrainer

    stage: Stage = settings["stage"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:  # nothing is saved there; the trainer wants a folder
        trainer = MutualAlignmentTrainer(
            model=model,
            args=arguments(folder=scratch, **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError(
                "the loop trains with data parallelism (DDP); FSDP and DeepSpeed are not supported here: "
                "start it with `accelerate launch --multi_gpu`, or train one direction with MutualAlignmentTrainer"
            )
        trainer.remove_callback(PrinterCallback)
        pairs = len(cast("Dataset[Any]", trainer.train_dataset))  # those that fit into max_length
        trainer.add_callback(_Watch(stage.name, pairs, say))
        trainer.train()
    seconds = time.monotonic() - began
    history = [_timeless(entry) for entry in trainer.state.log_history]
    if processes.first:
        with atomic_write(folder / LOG) as temporary:
            temporary.write_text("".join(to_json(entry) + "\n" for entry in history), encoding="utf-8")
    tokens = max((entry.get("num_tokens", 0) for entry in history), default=0)
    return {
        "pairs": pairs,
        "left_out_too_long": len(rows) - pairs,
        "steps": trainer.state.global_step,
        "loss": history[-1].get("train_loss"),
        "alpha": float(trainer.synthetic_weight) if any(row.get("synthetic") for row in rows) else None,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
    }


def read_log(folder: Path) -> list[dict[str, float]]:
    """The log lines of a training stage."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]


def _timeless(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A log line without what depends on the clock, so that the same run leaves the same file."""
    clocked = ("runtime", "per_second", "total_flos")
    return {name: value for name, value in entry.items() if not name.endswith(clocked)}


class _Watch(TrainerCallback):
    """Tells the display how far training is, in pairs over all epochs."""

    def __init__(self, stage: str, pairs: int, say: Callable[[Progress], None]) -> None:
        self.stage, self.pairs, self.say = stage, pairs, say
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        share = min(state.global_step / max(state.max_steps, 1), 1.0)
        total = max(1, round(self.pairs * state.num_train_epochs))
        self.say(Progress(self.stage, round(share * total), total, seconds=time.monotonic() - self.began))
