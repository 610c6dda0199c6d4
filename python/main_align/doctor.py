"""`main-align doctor`: what this installation has, what serves what, and what to do about gaps."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .manifest import installed

OPTIONAL = {
    "transformers": "pip install 'main-kernels[hf]'",
    "datasets": "pip install 'main-kernels[hf]' (only for `datasets` sources)",
    "pyarrow": "pip install 'main-kernels[hf]' (only for .parquet)",
    "matplotlib": "pip install 'main-kernels[hf]' (only for --plot)",
    "flash-attn": "never needed: torch's own attention serves; pip install 'main-kernels[flash]'",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, whether scoring works, and what to do."""

    name: str
    found: str
    ok: bool = True
    remedy: str = ""


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

    yield Finding("torch", torch.__version__)
    yield Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    yield Finding("instruction set", torch.backends.cpu.get_cpu_capability())
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
    for name, remedy in OPTIONAL.items():
        found = installed(name)
        needed = name == "transformers"
        yield Finding(name, found or "not installed", bool(found) or not needed, "" if found else remedy)


def _model() -> Iterator[Finding]:
    from .models import CONVERSION, SMOLLM2_PACKAGE, SMOLLM2_REMEDY, cache_folder

    version = installed(SMOLLM2_PACKAGE)
    if version is None:
        found = f"{SMOLLM2_PACKAGE} is not installed; score needs --model"
        yield Finding("default model", found, False, SMOLLM2_REMEDY)
        return
    folder = cache_folder() / f"smollm2-{version}-{CONVERSION}"
    state = f"converted in {folder}" if folder.is_dir() else "converted on first use"
    yield Finding("default model", f"{SMOLLM2_PACKAGE} {version}, {state}")
