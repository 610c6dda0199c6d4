"""run_train_stage: train one direction with MutualAlignmentTrainer and save its model as safetensors.

A stage that was killed restarts from the checkpoint it started with. The trainer's own checkpoints are off because they
contain pickled optimiser states; a stage is short, and the result is the same.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from ..checks import check_types
from ..data.atomic import atomic_write
from ..data.write import to_json
from ..errors import UserError
from ..models.load import LoadedModel
from ..progress import Progress
from ..scoring.scorer import Scorer
from ..trainer_arguments import refused_settings
from .config import LoopConfig, check_names
from .context import LoopContext, stage_seed
from .generate_stage import PAIRS
from .pairs import DROPPED, read_generations, training_rows
from .plan import Stage

LOG = "log.jsonl"
EVAL_LIMIT = 256  # pairs evaluated after each training stage
# MAIN's loss has no alignment terms; a positive weight in `training` adds one.
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
CLOCK_SUFFIXES = ("runtime", "per_second", "total_flos")  # of log entries that differ between equal runs


def run_train_stage(context: LoopContext, stage: Stage, work_dir: Path) -> dict[str, Any]:
    """Train the stage's direction, save its model and evaluate it.

    Args:
        context: state of the run.
        stage: a stage with the work "train".
        work_dir: folder of the stage; gets log.jsonl and the model.

    Returns:
        Entries of the stage's manifest.
    """
    seed_pairs = context.inputs.seed_pairs.usable
    generated = read_generations(context.run_dir.stage_dir(stage.pairs_stage) / PAIRS) if stage.pairs_stage else []
    model = context.models.load_for_training(stage, context.stage_seed(stage))
    results = train(model, training_rows(seed_pairs, generated), context, stage, work_dir)
    if context.processes.is_main:
        context.models.save(model, stage.direction, work_dir)
        results |= _evaluate(model, context, stage)
        weight = results["synthetic_weight"]
        synthetic = "" if weight is None else f", synthetic weight {weight:.3f}"
        nll = f"{results['nll']:.3f} nats/token on {results['nll_of'].replace('_', ' ')}"
        context.log(f"{stage.name}: loss {results['loss']:.3f}{synthetic}, {nll}")
    return {"seed_pairs": len(seed_pairs), "synthetic_pairs": len(generated), **results}


def check_training(config: LoopConfig, stage: Stage, dtype: str, device: torch.device) -> None:
    """Raise UserError if `training` has a setting that MutualAlignmentConfig does not know or accept."""
    from ..training import MutualAlignmentConfig
    from ..training.trainer.settings import check_settings

    known = [item.name for item in fields(MutualAlignmentConfig) if item.init]
    check_names(config.training, known, "training")
    trainer_config = make_trainer_config(config, stage, config.output_dir, dtype, device)
    trainer_config.check()
    check_settings(trainer_config, sft=True)
    with refused_settings():
        for callback in get_reporting_integration_callbacks(trainer_config.report_to):
            callback()


def make_trainer_config(config: LoopConfig, stage: Stage, output_dir: str, dtype: str, device: torch.device) -> Any:
    """Return the MutualAlignmentConfig of a training stage.

    Args:
        config: settings of the run.
        stage: a training stage.
        output_dir: folder of the trainer.
        dtype: dtype of the model; bfloat16 and float16 train with autocast.
        device: device of the model.

    Raises:
        UserError: MutualAlignmentConfig rejects a value.
    """
    from ..training import MutualAlignmentConfig

    settings = {**DEFAULTS, "bf16": dtype == "bfloat16", "fp16": dtype == "float16", **config.training}
    if stage.round == 0:
        settings["num_train_epochs"] = config.warmup_epochs
        settings["max_steps"] = -1
    try:
        check_types(MutualAlignmentConfig, config.training)
        return MutualAlignmentConfig(
            output_dir=output_dir,
            directions=stage.direction,
            seed=stage_seed(config, stage),
            max_length=config.max_length,
            synthetic_weight_schedule=config.synthetic_weight_schedule,
            synthetic_weight=float(config.synthetic_weight),
            use_cpu=device.type == "cpu",
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {error}") from error


@refused_settings()
def train(model: Any, rows: list[dict[str, Any]], context: LoopContext, stage: Stage, work_dir: Path) -> dict[str, Any]:
    """Train a model in place.

    Args:
        model: the model or adapter to train.
        rows: rows of the trainer, as `training_rows` makes them.
        context: state of the run.
        stage: a training stage.
        work_dir: folder of the stage; gets log.jsonl, and dropped.jsonl if a pair is dropped.

    Returns:
        Counts, losses and times for the manifest.

    Raises:
        UserError: the run was started with FSDP or DeepSpeed, or a training library refuses a setting.
    """
    from ..training import MutualAlignmentTrainer
    from ..training.dataset.packing import PackedPairs

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:  # the trainer requires a folder but saves nothing
        trainer = MutualAlignmentTrainer(
            model=model,
            args=make_trainer_config(context.config, stage, scratch, context.dtype, context.processes.device),
            train_dataset=Dataset.from_list(rows),
            processing_class=context.models.info[stage.direction].tokenizer,
        )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError(
                "the loop trains with data parallelism (DDP) and does not support FSDP or DeepSpeed: "
                "start it with `accelerate launch --multi_gpu`, or train one direction with MutualAlignmentTrainer"
            )
        trainer.remove_callback(PrinterCallback)
        trained: Any = trainer.train_dataset
        trained = trained.pairs if isinstance(trained, PackedPairs) else trained
        pairs = len(trained)  # without those over max_length
        if context.processes.is_main:
            _write_dropped(rows, set(trained["row"]), context, stage, work_dir)
        trainer.add_callback(_ProgressCallback(stage.name, pairs, context.on_progress))
        runtime = trainer.train().metrics["train_runtime"]
    seconds = time.monotonic() - start
    log = [_drop_clock(entry) for entry in trainer.state.log_history]
    if context.processes.is_main:
        with atomic_write(work_dir / LOG) as temporary:
            temporary.write_text("".join(to_json(entry) + "\n" for entry in log), encoding="utf-8")
    tokens = max((entry.get("num_tokens", 0) for entry in log), default=0)
    return {
        "pairs": pairs,
        "dropped_over_length": len(rows) - pairs,
        "steps": trainer.state.global_step,
        "loss": log[-1].get("train_loss"),
        "synthetic_weight": float(trainer.synthetic_weight) if any(row.get("synthetic") for row in rows) else None,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(runtime, 1e-9), 1),  # without set-up
    }


def _write_dropped(
    rows: list[dict[str, Any]], trained: set[int], context: LoopContext, stage: Stage, work_dir: Path
) -> None:
    """Write the rows that are not trained to dropped.jsonl, if there are any, and log their number."""
    dropped = [row for number, row in enumerate(rows) if number not in trained]
    if dropped:
        with atomic_write(work_dir / DROPPED) as temporary:
            temporary.write_text("".join(to_json(row) + "\n" for row in dropped), encoding="utf-8")
        limit = context.config.max_length
        context.log(f"{stage.name}: pairs over {limit} tokens, not trained: {len(dropped):,} (see {DROPPED})")


def read_log(stage_dir: Path) -> list[dict[str, float]]:
    """Return the log entries of a training stage."""
    return [json.loads(line) for line in (stage_dir / LOG).read_text(encoding="utf-8").splitlines()]


def _evaluate(model: Any, context: LoopContext, stage: Stage) -> dict[str, Any]:
    """Return the mean -log p of the trained side, in nats per token, on eval_pairs (if none, on seed_pairs)."""
    inputs, info = context.inputs, context.models.info[stage.direction]
    pair_set, name = (inputs.eval_pairs, "eval_pairs") if inputs.eval_pairs else (inputs.seed_pairs, "seed_pairs")
    unwrapped = model.get_base_model() if context.config.use_peft else model
    scorer = Scorer(LoadedModel(unwrapped.eval(), info.tokenizer, stage.name, None, ""), max_length=info.context)
    nll, tokens = ("nll_y_given_x", "tokens_y") if stage.direction == "forward" else ("nll_x_given_y", "tokens_x")
    scored = [row for row in scorer.score(pair_set.usable[:EVAL_LIMIT]) if row[nll] is not None]
    count = sum(row[tokens] for row in scored)
    total = sum(row[nll] * row[tokens] for row in scored)
    return {"nll": total / count if count else None, "nll_of": name, "nll_pairs": len(scored)}


def _drop_clock(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Remove times from a log entry, so that equal runs write equal files."""
    return {name: value for name, value in entry.items() if not name.endswith(CLOCK_SUFFIXES)}


class _ProgressCallback(TrainerCallback):
    """Report training progress in pairs over all epochs."""

    def __init__(self, stage_name: str, pairs: int, on_progress: Callable[[Progress], None]) -> None:
        self.stage_name, self.pairs, self.on_progress = stage_name, pairs, on_progress
        self.start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        fraction = min(state.global_step / max(state.max_steps, 1), 1.0)
        total = max(1, round(self.pairs * state.num_train_epochs))
        seconds = time.monotonic() - self.start
        self.on_progress(Progress(self.stage_name, round(fraction * total), total, seconds=seconds))
