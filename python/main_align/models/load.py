"""load, load_weights, unwrap_peft: a causal language model and its tokenizer, from files or from a PeftModel.

A checkpoint without all of its weights is refused, because transformers would fill the gaps with random numbers.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from .checkpoint import MERGE, Checkpoint, find_checkpoint, readable_errors
from .devices import warn_if_slow
from .encoding import PairEncoder
from .smollm2 import SMOLLM2

SHOWN = 3  # missing weights that a message names


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to score: in eval mode, on its device, in its dtype.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        name: the name it was loaded by.
        revision: commit of a hub id; None for a folder.
        digest: hash of weights, config and tokenizer. Models with the same digest give the same scores.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None
    digest: str


def load(
    name: str | os.PathLike[str] = SMOLLM2,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        name: `smollm2`, a folder saved by `save_pretrained`, or a hub id. A LoRA adapter is merged into its base.
        revision: branch, tag or commit of a hub id.
        dtype: dtype of the weights. Default float32.
        device: device of the weights. Default "cpu".
        trust_remote_code: run code that comes with the model. Default False.

    Raises:
        UserError: no such model; the checkpoint lacks weights; the tokenizer has neither BOS nor EOS; the model's
            vocabularies differ.
    """
    warn_if_slow(dtype, torch.device(device))
    found = find_checkpoint(os.fspath(name), revision=revision, trust_remote_code=trust_remote_code)
    model = load_weights(found, dtype=dtype, trust_remote_code=trust_remote_code)
    check_model(found.name, model, found.tokenizer)
    placed: Any = model  # `.to` is typed as a decorator
    return LoadedModel(placed.to(device).eval(), found.tokenizer, found.name, found.commit, found.digest)


def load_weights(found: Checkpoint, **options: Any) -> PreTrainedModel:
    """Load the weights of a checkpoint; an adapter is merged into its base, which is dequantised if it is stored so.

    Args:
        found: the checkpoint.
        options: options of `from_pretrained`.

    Raises:
        UserError: weights are missing; the message names them.
    """
    if found.base is not None:
        base: Any = load_weights(found.base, **options)
        if getattr(base, "is_quantized", False) and "quantization_config" not in options:
            dtype = base.dtype
            with readable_errors(found.name):  # merged weights would be rounded to the 4 or 8 bits of the base
                base = base.dequantize().to(dtype)
        return _merge(found, base)
    with readable_errors(found.name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            found.source, **{**options, "revision": found.revision}, output_loading_info=True
        )
    model, report = loaded
    _check_complete(found.name, found.config, report)
    return model


def _merge(found: Checkpoint, base: PreTrainedModel) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        base_name = found.base.name if found.base else ""
        raise UserError(
            f"{found.name!r} is an adapter on {base_name!r}: pip install 'main-kernels[train]' loads it, or {MERGE}"
        ) from error
    with readable_errors(found.name), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")  # missing ones would be random
        adapted: Any = PeftModel.from_pretrained(base, found.source, revision=found.revision or "main")
        return adapted.merge_and_unload()


def _check_complete(name: str, config: PretrainedConfig, report: Mapping[str, Any]) -> None:
    """Raise UserError unless the checkpoint holds a complete causal language model."""
    kinds = ", ".join(config.architectures or ()) or type(config).__name__
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UserError(
            f"{name!r} ({kinds}) is no whole causal language model: its files lack {', '.join(missing[:SHOWN])}{more}, "
            "which would be filled with random numbers. Give a model saved as AutoModelForCausalLM; a reward model or "
            "a bare backbone has no language-model head."
        )
    if "Classification" in kinds:  # with tied embeddings no weight is missing
        raise UserError(f"{name!r} ({kinds}) was trained to classify: give the causal language model it was made from")


def unwrap_peft(model: nn.Module) -> PreTrainedModel:
    """Return the causal language model inside a PeftModel, or the model itself.

    Args:
        model: a PreTrainedModel, or a PeftModel around one.

    Raises:
        UserError: another type, or an adapter that `check_peft` refuses.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        for config in inner.peft_config.values():
            check_peft(config)
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        raise UserError(f"model must be a PreTrainedModel, a PeftModel or a name, got {type(model).__name__}")
    return inner


def check_peft(config: Any) -> None:
    """Raise UserError for an adapter that reads a packed row as one sequence: virtual tokens or an activated LoRA.

    Args:
        config: configuration of an adapter.
    """
    if getattr(config, "alora_invocation_tokens", None):
        raise UserError(
            "alora_invocation_tokens is not supported: an activated LoRA starts at the last invocation of a row, and "
            "pairs are read as packed sequences, of which a row has several. Leave it out"
        )
    if getattr(config, "is_prompt_learning", False):
        raise UserError(
            f"{type(config).__name__} is not supported: it puts virtual tokens before every sequence, and pairs are "
            "read as packed sequences. Use an adapter on the weights, such as LoraConfig"
        )


def check_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a model and a tokenizer fit together.

    A tokenizer may have tokens without an embedding in the model; `PairEncoder` refuses them when they are used.

    Args:
        name: name of the model in messages.
        model: the model.
        tokenizer: the tokenizer.

    Raises:
        UserError: no BOS and no EOS, no language-model head with a weight, or vocabularies that differ.
    """
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name!r} has neither a BOS nor an EOS token, so nothing can stand "
            "before the first token. Set tokenizer.bos_token and save the tokenizer again."
        )
    head = language_model_head(name, model)
    rows_in, rows_out = vocabulary(model), head.weight.shape[0]
    if rows_in != rows_out:
        raise UserError(
            f"{name!r} does not fit together: {rows_in} input embeddings, {rows_out} output rows "
            "(model.resize_token_embeddings makes them equal)."
        )
    trained_encoder(name, tokenizer, rows_out, "output rows")


def language_model_head(name: str, model: PreTrainedModel) -> Any:
    """Return the language-model head, a module whose weight is a tensor.

    Args:
        name: name of the model in messages.
        model: the model.

    Raises:
        UserError: there is no head, or its weight is no plain matrix, as after quantisation or with ZeRO-3.
    """
    head: Any = model.get_output_embeddings()
    if head is None:
        raise UserError(
            f"{name!r} ({type(model).__name__}) has no language-model head: give a causal "
            "language model, not a bare backbone."
        )
    weight = getattr(head, "weight", None)
    check_unsharded(weight)
    is_plain = isinstance(weight, torch.Tensor) and weight.is_floating_point()  # bitsandbytes' are integers
    if not is_plain or is_traceable_wrapper_subclass(weight):  # as those of torchao and tensor parallelism are
        raise UserError(
            f"the language-model head of {name!r} has no weight matrix, from which the log-probabilities are computed, "
            f"but {type(weight).__name__}: leave the head out of quantisation and out of tensor parallelism"
        )
    return head


def check_unsharded(weight: Any) -> None:
    """Raise UserError for the weight of a language-model head that DeepSpeed has divided among the processes."""
    if hasattr(weight, "ds_id"):
        raise UserError("DeepSpeed ZeRO-3 shards lm_head, whose weight is read outside of it: use ZeRO-2, or FSDP2")


def check_quantisation(model: PreTrainedModel) -> None:
    """Raise UserError for weights in 8 bits of bitsandbytes whose products depend on the other rows of a batch.

    A column with an activation above the threshold in any row is computed in 16 bits in all rows.

    Args:
        model: the model.
    """
    quantisation: Any = getattr(model.config, "quantization_config", None)
    if getattr(quantisation, "load_in_8bit", False) and quantisation.llm_int8_threshold:
        raise UserError(
            f"a model in 8 bits with llm_int8_threshold={quantisation.llm_int8_threshold} finds a batch's outliers "
            "together, so its scores would depend on the batch: set llm_int8_threshold to 0.0 in its "
            "quantization_config, or load it in 4 bits or unquantised"
        )


def trained_encoder(name: str, tokenizer: PreTrainedTokenizerBase, rows: int, rows_of: str) -> PairEncoder:
    """Return the encoder of training and generation, which ends every sequence.

    Args:
        name: name of the model in messages.
        tokenizer: the tokenizer.
        rows: number of tokens with an embedding.
        rows_of: what `rows` counts, in messages.

    Raises:
        UserError: the markers need a token without an embedding.
    """
    try:
        return PairEncoder(tokenizer, close=True, vocabulary=rows)
    except UserError as error:
        sizes = f"{rows} {rows_of}, {len(tokenizer)} tokens in its tokenizer"
        raise UserError(f"{name!r} does not fit together: {sizes}, and {error}") from None


def vocabulary(model: PreTrainedModel) -> int:
    """Return the number of tokens with an embedding in the model."""
    tokens: Any = model.get_input_embeddings()
    return int(tokens.weight.shape[0])
