"""EXPERIMENTS, the loss terms that the study compares, and `train`, which fine-tunes one of them.

All experiments of one seed share the model, the initial adapter weights, the pairs and their order. Every alignment
term has weight 0.1, chosen before the first run.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from main_align.data.pairs import Pair
from main_align.models.load import LoadedModel, load
from main_align.training import MutualAlignmentConfig, MutualAlignmentTrainer
from peft import LoraConfig
from transformers import PrinterCallback

NO_TERMS = {
    "forward_weight": 1.0,
    "reverse_weight": 0.0,
    "semantic_weight": 0.0,
    "intentional_weight": 0.0,
    "duality_gap_weight": 0.0,
    "structural_weight": 0.0,
}

PLAIN = "sft"
REPEAT = "repeat"  # factor of the epochs; 2 is as much work as both directions
EXPERIMENTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "sft_twice": {REPEAT: 2},
    "both": {"directions": "both", "reverse_weight": 1.0},
    "semantic": {"semantic_weight": 0.1},
    "intentional": {"intentional_weight": 0.1},
    "duality": {"directions": "both", "duality_gap_weight": 0.1},
    "structural": {"structural_weight": 0.1},
    "full": {
        "directions": "both",
        "reverse_weight": 1.0,
        "semantic_weight": 0.1,
        "intentional_weight": 0.1,
        "duality_gap_weight": 0.1,
        "structural_weight": 0.1,
    },
    # added after the held-out results of the experiments above were known
    "semantic_strong": {"semantic_weight": 1.0},
    "full_light": {
        "directions": "both",
        "reverse_weight": 1.0,
        "semantic_weight": 0.1,
        "intentional_weight": 0.01,
        "duality_gap_weight": 0.1,
        "structural_weight": 0.1,
    },
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Setting:
    """Training settings of every experiment. LoRA adapts the top `layers` layers only, so gradients stop there."""

    model: str
    epochs: float
    batch: int
    learning_rate: float
    rank: int
    layers: int
    longest: int


@dataclass
class TrainedModel:
    """A model with its adapter (not merged, because the base can be in bfloat16) and its training facts."""

    model: Any
    loaded: LoadedModel
    head: Any  # projection heads of the embedding terms, or None
    facts: dict[str, Any]


def load_base(setting: Setting, dtype: torch.dtype = torch.bfloat16) -> LoadedModel:
    """Load the model without an adapter."""
    return load(setting.model, dtype=dtype)


def train(
    setting: Setting,
    experiment: str,
    pairs: Sequence[Pair],
    seed: int,
    steps: int = -1,
    dtype: torch.dtype = torch.bfloat16,
) -> TrainedModel:
    """Train one experiment.

    Args:
        setting: training settings.
        experiment: name in EXPERIMENTS.
        pairs: training pairs.
        seed: random seed of the adapter and of the order of pairs.
        steps: number of optimizer steps. Default: the epochs decide.
        dtype: dtype of the base model; bfloat16 trains with autocast.
    """
    terms = {"directions": "forward"} | NO_TERMS | EXPERIMENTS[experiment]
    repeat = terms.pop(REPEAT, 1)
    loaded = load_base(setting, dtype)
    layers = int(loaded.model.config.num_hidden_layers)
    lora = LoraConfig(
        r=setting.rank,
        lora_alpha=2 * setting.rank,
        target_modules=LINEAR,
        layers_to_transform=list(range(max(0, layers - setting.layers), layers)),
        task_type="CAUSAL_LM",
    )
    rows = Dataset.from_list([{"prompt": pair.instruction, "completion": pair.response} for pair in pairs])
    with tempfile.TemporaryDirectory() as folder:
        arguments = MutualAlignmentConfig(
            output_dir=folder,
            **terms,
            max_length=2 * setting.longest,  # a swapped response can be longer
            learning_rate=setting.learning_rate,
            per_device_train_batch_size=setting.batch,
            num_train_epochs=setting.epochs * repeat,
            max_steps=steps,
            warmup_steps=2,
            gradient_checkpointing=False,
            bf16=dtype == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            data_seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        torch.manual_seed(seed)  # the adapter is initialised before the trainer sets its seed
        trainer = MutualAlignmentTrainer(
            model=loaded.model,
            args=arguments,
            train_dataset=rows,
            processing_class=loaded.tokenizer,
            peft_config=lora,
        )
        collator = CountingCollator(trainer.data_collator)
        trainer.data_collator = collator
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter(), time.process_time()
        trainer.train()
        facts = {
            "terms": terms,
            "train_s": round(time.perf_counter() - start[0], 2),
            "cpu_s": round(time.process_time() - start[1], 2),  # excludes other processes
            "steps": trainer.state.global_step,
            "tokens": collator.tokens,
            "tokens_scored": collator.scored,
            "order": collator.digest.hexdigest()[:12],
        }
    model = trainer.model.get_base_model().eval()
    return TrainedModel(model, loaded, trainer.alignment_head, facts)


class CountingCollator:
    """Count the tokens that pass through a collator and hash the order of the pairs."""

    def __init__(self, collate: Any) -> None:
        self.collate, self.tokens, self.scored, self.digest = collate, 0, 0, hashlib.sha256()

    def __call__(self, features: Any) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate(features)
        self.tokens += batch["input_ids"].numel()
        self.scored += batch["pairs"]["targets"].numel()
        self.digest.update(batch["pairs"]["row"].numpy().tobytes())
        return batch
