"""`main-align doctor`: what this installation has, what serves what, and what to do about gaps.

It needs torch alone: everything else is looked for, and its absence is a finding.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..environment import (
    installed,
)
from ..models.smollm2 import CONVERSION, SMOLLM2_PACKAGE, SMOLLM2_REMEDY, cache_folder

HF, TRAIN = "pip install 'main-kernels[hf]'", "pip install 'main-kernels[train]'"
NEEDED = ("transformers", "typer", "rich", "safetensors", "pyarrow")  # by main-align score
OPTIONAL = {
    "datasets": f"{HF} (only for `datasets` sources and for training)",
    "matplotlib": f"{HF} (only for --plot)",
    "accelerate": f"{HF} (for training, and to convert the default model once)",
    "gguf": f"{HF} (to convert the default model once)",
    "sentencepiece": f"{HF} (for tokenizers that come as tokenizer.model only)",
    "trl": f"{TRAIN} (only for training)",
    "peft": f"{TRAIN} (for adapters)",
    "flash-attn": "never needed: torch's own attention serves; pip install 'main-kernels[flash]'",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, whether scoring works, and what to do."""

    name: str
    found: str
    ok: bool = True
    remedy: str = ""


def run_doctor() -> int:
    """Print what was found; 0 where scoring with the default model works, else 1."""
    findings = examine()
    for finding in findings:
        print(f"{'ok' if finding.ok else '!!'}  {finding.name:<16} {finding.found}")
        if finding.remedy:
            print(f"    {'':<16} -> {finding.remedy}")
    return 0 if all(finding.ok for finding in findings) else 1


def examine() -> list[Finding]:
    """Look at everything; a part that fails to load is a finding, not a failure."""
    findings = [Finding("python", f"{platform.python_version()} on {platform.machine()}")]
    for look in (_torch, _backends, _packages, _model):
        findings += _guarded(look)
    return findings


def _guarded(look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    name = look.__name__.strip("_")
    try:
        return list(look())
    except Exception as error:  # whatever is broken here is what the user asks about
        return [Finding(name, f"{type(error).__name__}: {error}", False, "install it again")]


def _torch() -> Iterator[Finding]:
    if installed("torch") is None:
        yield Finding("torch", "not installed", False, "pip install torch")
        return
    import torch

    from main_kernels.processor import has_fast_bfloat16

    yield Finding("torch", torch.__version__)
    yield Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    yield Finding("instruction set", torch.backends.cpu.get_cpu_capability())
    if has_fast_bfloat16():
        yield Finding("bfloat16", "the CPU multiplies it; --dtype auto takes it")
    else:
        yield Finding("bfloat16", "slow on this CPU, which has no instructions for it; --dtype auto takes float32")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("cuda", f"{torch.version.cuda}: {', '.join(names)}")
    else:
        why = "no device" if torch.version.cuda else "this torch is built without CUDA"
        yield Finding("cuda", f"not used: {why}; everything runs on the CPU")


def _backends() -> Iterator[Finding]:
    from main_kernels import backend_report

    for name, serves in backend_report().items():
        yield Finding(f"backend {name}", serves)


def _packages() -> Iterator[Finding]:
    for name, remedy in (dict.fromkeys(NEEDED, HF) | OPTIONAL).items():
        found = installed(name)
        yield Finding(name, found or "not installed", bool(found) or name in OPTIONAL, "" if found else remedy)


def _model() -> Iterator[Finding]:
    version = installed(SMOLLM2_PACKAGE)
    if version is None:
        found = f"{SMOLLM2_PACKAGE} is not installed; score needs --model"
        yield Finding("default model", found, False, SMOLLM2_REMEDY)
        return
    folder = cache_folder() / f"smollm2-{version}-{CONVERSION}"
    if folder.is_dir():
        yield Finding("default model", f"{SMOLLM2_PACKAGE} {version}, converted in {folder}")
        return
    lacking = [name for name in ("gguf", "accelerate") if installed(name) is None]
    state = f"needs {' and '.join(lacking)} to be converted" if lacking else "converted on first use"
    yield Finding("default model", f"{SMOLLM2_PACKAGE} {version}, {state}", not lacking, HF if lacking else "")
