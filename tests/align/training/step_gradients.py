"""Write the gradients of one optimizer step to a file; the processes of test_scale.py run this.

Everything is in float64, so that a difference is a mistake and not rounding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from main_align.loop.distributed import Processes
from main_align.training import MutualAlignmentConfig, MutualAlignmentTrainer
from safetensors.torch import save_file
from transformers import TrainerCallback

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model

PAIRS = [
    {"prompt": "Name a prime.", "completion": "Seven is one, and so is eleven.", "synthetic": False},
    {"prompt": "What is the capital of France?", "completion": "Paris.", "synthetic": True},
    {"prompt": "Greet me.", "completion": "Good morning to you.", "synthetic": False},
    {"prompt": "Say it again.", "completion": "Good morning to you.", "synthetic": False},  # the same response
    {"prompt": "Count to three, slowly, please.", "completion": "One, two, three.", "synthetic": True},
    {
        "prompt": "Is water wet?",
        "completion": "It makes other things wet; itself, that is a matter of words.",
    },
    {"prompt": "Why?", "completion": "Because.", "synthetic": True},
    {"prompt": "Translate 'cat' into German.", "completion": "Katze", "synthetic": False},
]


class Gradients(TrainerCallback):
    """Saves the gradients before the optimizer step, sharded ones gathered."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self.sharded = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):  # type: ignore[no-untyped-def]
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad
                if hasattr(gradient, "full_tensor"):
                    self.sharded, gradient = True, gradient.full_tensor()
                self.found[name.removeprefix("module.")] = gradient.detach().clone()


def trainer_of(output: str, *, rows: int = 8, shards: int = 0, double: bool = True, lora: bool = False, **settings):  # type: ignore[no-untyped-def]
    dataset = Dataset.from_list(PAIRS[:rows])
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab=len(tokenizer))
    options = {}
    if lora:
        from peft import LoraConfig

        torch.manual_seed(0)
        targets = ["q_proj", "v_proj", "down_proj"]
        options["peft_config"] = LoraConfig(r=4, lora_dropout=0.2, target_modules=targets, init_lora_weights=False)
    defaults = {
        "semantic_weight": 0.3,
        "intentional_weight": 0.2,
        "structural_weight": 0.5,
        "projection_dim": 16,
        "disable_tqdm": True,
    }
    defaults |= {"max_steps": 1, "max_grad_norm": 0.0, "logging_steps": 1, "save_strategy": "no", "report_to": []}
    defaults |= {"bf16": False, "use_cpu": DEVICE == "cpu"}
    args = MutualAlignmentConfig(output_dir=output, **(defaults | settings))
    gradients = Gradients()
    trainer = MutualAlignmentTrainer(
        model=model.double() if double else model,
        args=args,
        train_dataset=dataset.to_iterable_dataset(num_shards=shards) if shards else dataset,
        processing_class=tokenizer,
        callbacks=[gradients],
        **options,
    )
    return trainer, gradients


def step_sharded(trainer, gradients) -> None:  # type: ignore[no-untyped-def]
    """Run one step with the model sharded by FSDP2.

    accelerate shards on accelerators only, so on a CPU the trainer's methods are called one by one.
    """
    from torch.distributed.fsdp import fully_shard

    trainer.args.max_steps = trainer.state.max_steps = trainer.state.logging_steps = 1
    for layer in trainer.model.model.layers:
        fully_shard(layer, reshard_after_forward=True)
    fully_shard(trainer.model)
    trainer.model.train()
    batches = iter(trainer.get_train_dataloader())
    steps = trainer.args.gradient_accumulation_steps
    samples, count = trainer.get_batch_samples(batches, steps, trainer.args.device)
    for batch in samples:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).backward()
    gradients.on_pre_optimizer_step(None, None, None, model=trainer.model)
    trainer.log({})


def main(out: Path, settings: dict[str, Any]) -> None:
    sharded, evaluate = settings.pop("sharded", False), settings.pop("evaluate", False)
    trainer, gradients = trainer_of(str(out.parent / "trainer"), **settings)
    if sharded:
        step_sharded(trainer, gradients)
    else:
        trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "nll_y_given_x" in entry)
    if evaluate:
        logged |= trainer.evaluate(trainer.train_dataset)
    if trainer.is_world_process_zero():
        save_file({name: tensor.contiguous() for name, tensor in gradients.found.items()}, out)
        out.with_suffix(".json").write_text(json.dumps(logged | {"sharded": gradients.sharded}))
    Processes(use_cpu=True).shutdown()
