"""Checks of the trainer's arguments: an argument without effect is refused instead of ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate.utils import DynamoBackend
from torch import nn

from ...checks import check_counts
from ...errors import UserError
from ...models.load import check_peft
from ...trainer_arguments import check_best_metric
from ..distributed import world_size
from ..terms import EMBEDDING_TERMS


class Refusal(NamedTuple):
    """An option that is refused if `is_unused` is true of its value."""

    name: str
    is_unused: Callable[[Any], bool]
    why: str


REFUSED = (
    Refusal("label_smoothing_factor", bool, "the loss is computed without logits; set it to 0"),
    Refusal(
        "liger_kernel_config",
        lambda value: bool(value) and any(value.get(name) for name in ("fused_linear_cross_entropy", "cross_entropy")),
        "the loss of the head is fused already; leave Liger's losses out",
    ),
    Refusal("loss_type", lambda value: value not in ("nll", "chunked_nll"), "use 'nll'"),
    Refusal(
        "completion_only_loss",
        lambda value: value is False,
        "leave it out: p(y|x) is trained on the response alone; set reverse_weight to train p(x|y)",
    ),
    Refusal(
        "assistant_only_loss",
        bool,
        "the last assistant turn of a conversation is trained, earlier turns are context; leave it out",
    ),
    Refusal(
        "truncation_mode",
        lambda value: value != "keep_start",
        "pairs are cut only with over_length='truncate', on both sides; leave it out",
    ),
    Refusal(
        "dataset_kwargs",
        lambda value: bool(value) and any(value.values()),
        "a tokenised or prepared data set is recognised by its columns; leave it out",
    ),
    Refusal("dataset_text_field", lambda value: value != "text", "plain text has no two sides to align; pass pairs"),
    Refusal(
        "pad_to_multiple_of",
        lambda value: value not in (None, "auto"),
        "sequences are packed without padding; leave it out",
    ),
    Refusal(
        "router_aux_loss_coef", bool, "the load-balancing loss of a mixture of experts is not trained; set it to 0.0"
    ),
    Refusal(
        "average_tokens_across_devices",
        lambda value: not value and world_size() > 1,
        "a step's tokens are counted over all processes; leave it True",
    ),
    Refusal(
        "ddp_static_graph",
        bool,
        "the gradients of the terms are measured before the step's backward, and DDP would not reduce that one; leave "
        "it out",
    ),
    Refusal("length_column_name", lambda value: value != "length", "the trainer counts the lengths; leave it out"),
)

SFT_ONLY = (
    Refusal("chat_template_path", bool, "set tokenizer.chat_template"),
    Refusal("eos_token", bool, "set tokenizer.eos_token"),
    Refusal("activation_offloading", bool, "use gradient_checkpointing"),
)

_ARGUMENTS = {
    "data_collator": "the trainer packs pairs with its own collator",
    "compute_loss_func": "the trainer has its own loss; subclass and override compute_loss to add to it",
    "preprocess_logits_for_metrics": "there are no logits",
    "model_init": "pass the model itself; a new model would not have the hooks on its forward",
    "compute_metrics": "there are no logits; the metrics are in the log",
    "formatting_func": "it would join the two sides of a pair; pass prompt and completion instead",
}

_LOWER_IS_BETTER = (*EMBEDDING_TERMS, "duality_gap", "nll_y_given_x", "nll_x_given_y")
"""metrics of an evaluation, and of AlignmentCallback"""


def check_arguments(options: Mapping[str, Any]) -> None:
    """Raise UserError for an argument of the trainer that has no effect here or cannot work."""
    for name, why in _ARGUMENTS.items():
        if options.get(name) is not None:
            raise UserError(f"{name} is not supported with mutual alignment: {why}")
    check_peft(options.get("peft_config"))


def check_settings(args: Any, *, sft: bool) -> None:
    """Raise UserError, with the remedy, for the first setting that would have no effect.

    Args:
        args: TrainingArguments or a subclass.
        sft: True if the trainer is an SFTTrainer.
    """
    for name, is_unused, why in REFUSED:
        value = getattr(args, name, None)
        if hasattr(args, name) and is_unused(value):
            raise UserError(f"{name}={value!r} is not supported with mutual alignment: {why}")
    for name, is_unused, why in SFT_ONLY:
        value = getattr(args, name, None)
        if not sft and is_unused(value):
            raise UserError(f"{name}={value!r} is read by SFTTrainer, and this trainer is not one: {why}")
    batch_sizes = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    check_counts(**{name: getattr(args, name) for name in batch_sizes})
    if getattr(args, "activation_offloading", False) and not torch.accelerator.is_available():
        raise UserError("activation_offloading=True needs an accelerator, and there is none: leave it out")
    if not isinstance(args.seed, int) or not 0 <= args.seed < 1 << 32:
        raise UserError(f"seed must be at least 0 and below {1 << 32}, got {args.seed}")
    if args.num_train_epochs < 0 and args.max_steps <= 0:
        raise UserError(f"num_train_epochs={args.num_train_epochs} trains nothing: give a positive one, or max_steps")
    if args.optim_args and any(part.count("=") != 1 for part in args.optim_args.split(",")):
        raise UserError(f"optim_args: expected settings such as 'rank=64,scale=2', got {args.optim_args!r}")
    if args.torch_compile:
        _check_compile(args.torch_compile_backend, args.torch_compile_mode)
    if args.accelerator_config.dispatch_batches:
        raise UserError(
            "dispatch_batches=True is not supported with mutual alignment: a packed batch cannot be split between "
            "processes; leave it out of accelerator_config"
        )
    check_best_metric(args, _LOWER_IS_BETTER)
    packs = getattr(args, "packing", False) or getattr(args, "eval_packing", False)
    if packs and args.packing_strategy != "bfd":
        raise UserError(f"packing_strategy={args.packing_strategy!r} cuts samples, which breaks pairs: use 'bfd'")
    strategy = getattr(args, "train_sampling_strategy", "random")
    if packs and strategy in ("group_by_length", "batch_rebalance"):
        raise UserError(
            f"train_sampling_strategy={strategy!r} has no effect with packing, whose rows are of similar length"
        )


def _check_compile(backend: str, mode: str | None) -> None:
    """Raise UserError for a backend that accelerate does not know, or a mode that inductor does not."""
    known = {"torch_compile_backend": [each.value.lower() for each in DynamoBackend]}
    if backend == "inductor":
        known["torch_compile_mode"] = list(torch._inductor.list_mode_options())
    values = {"torch_compile_backend": backend.lower(), "torch_compile_mode": mode or "default"}
    for name, choices in known.items():
        if values[name] not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}, got {values[name]!r}")


def check_optimizer(optimizer: torch.optim.Optimizer | None, added: nn.Module | None) -> None:
    """Raise UserError if a user's optimizer lacks trainable parameters of `added`."""
    if optimizer is None or added is None:
        return
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left_out = [name for name, each in added.named_parameters() if each.requires_grad and id(each) not in known]
    if left_out:
        raise UserError(
            f"the optimizer in `optimizers` would not train {len(left_out)} parameters that the trainer adds to the "
            f"model (adapters and projection heads, such as {left_out[0]}): use "
            "optimizer_cls_and_kwargs=(class, options), override create_optimizer, or add no parameters "
            "(projection_dim=0, no peft_config)"
        )


def check_batches(loader: Any) -> None:
    """Raise UserError if a data loader of accelerate gives some processes more batches than others.

    Args:
        loader: a prepared torch DataLoader. That of a stream is always even.
    """
    sampler = loader.batch_sampler
    if getattr(sampler, "even_batches", True) or sampler.drop_last or sampler.num_processes == 1:
        return
    rows, processes = len(sampler.batch_sampler.sampler), sampler.num_processes
    size = loader.total_batch_size // processes
    if -(-rows // size) % processes:
        raise UserError(
            f"even_batches=False deals {rows:,} rows unevenly: in batches of {size}, some of the {processes} processes "
            "have one batch more, and the others would not be there to contrast its pairs. Leave it out of "
            "accelerator_config, use another batch size, or set dataloader_drop_last=True (for training only)"
        )


def check_parallelism(accelerator: Any, args: Any) -> None:
    """Raise UserError for a form of parallelism that is not supported."""
    plan = getattr(accelerator, "parallelism_config", None)
    for kind in ("tp", "cp", "sp"):
        if plan is not None and getattr(plan, f"{kind}_size", 1) > 1:
            raise UserError(f"{kind}_size > 1 is not supported with mutual alignment: use data parallelism or FSDP")
    if args.n_gpu > 1:
        raise UserError(
            "several GPUs in one process (nn.DataParallel) are not supported: start with accelerate launch or "
            "torchrun, or select one GPU with CUDA_VISIBLE_DEVICES"
        )
