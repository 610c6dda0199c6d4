"""set_up: load model and tokenizer, and check them against the settings before training."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...checks import check_counts
from ...errors import UserError
from ...models.checkpoint import find_checkpoint
from ...models.context_length import context_length
from ...models.forward import Forward
from ...models.load import check_model, load_weights, unwrap_peft
from ..config import AlignmentArguments
from .hooks import lm_head_weight

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """A trainable model, its tokenizer, and the length of the longest sequence in tokens."""

    model: nn.Module  # a PreTrainedModel, or a PeftModel around one
    tokenizer: PreTrainedTokenizerBase
    max_length: int


def set_up(
    model: str | nn.Module, tokenizer: Any, args: Any, alignment: AlignmentArguments, quantization_config: Any = None
) -> Setup:
    """Load a model given by name, switch it to packed attention, and check all that can be checked before training.

    Raises:
        UserError: with the remedy, if model, tokenizer or settings cannot work.
    """
    alignment.check()
    if isinstance(model, str):
        model, tokenizer = _load(model, tokenizer, args, quantization_config)
    base = unwrap_peft(model)
    if tokenizer is None:
        name = getattr(base.config, "_name_or_path", "")
        if not name:
            raise UserError("processing_class is needed: the model's config does not name its tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"processing_class must be a tokenizer, got {type(tokenizer).__name__}")
    check_model(type(base).__name__, base, tokenizer)
    lm_head_weight(base)
    Forward(base)  # switches the attention, and refuses a family whose packed probabilities differ
    if hasattr(base.config.get_text_config(), "output_router_logits") and getattr(args, "router_aux_loss_coef", 1) != 0:
        log.warning(
            "the load-balancing loss of a mixture of experts is not trained; router_aux_loss_coef=0.0 silences this"
        )
        args.router_aux_loss_coef = 0.0  # otherwise SFTTrainer makes the model compute it
    limit = context_length(base.config)
    requested = getattr(args, "max_length", None)
    check_counts(max_length=requested)
    if not (limit or requested):
        raise UserError("the model's config has no max_position_embeddings: set max_length")
    longest = min(n for n in (limit, requested) if n)
    return Setup(model, tokenizer, longest)


def _load(name: str, tokenizer: Any, args: Any, quantization_config: Any) -> tuple[nn.Module, Any]:
    """Load as SFTTrainer does, and `smollm2`."""
    options = dict(getattr(args, "model_init_kwargs", None) or {})
    if "torch_dtype" not in options:  # the earlier name
        options.setdefault("dtype", torch.float32)  # bf16=True is autocast; the trained weights stay float32
    options.setdefault("trust_remote_code", getattr(args, "trust_remote_code", False))
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    revision = options.get("revision")
    if revision == "main":  # TRL's default, also for folders
        revision = None
    checkpoint = find_checkpoint(
        name, revision=revision, tokenizer=tokenizer, trust_remote_code=options["trust_remote_code"]
    )
    return load_weights(checkpoint, **options), checkpoint.tokenizer
