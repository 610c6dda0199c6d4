"""doctor: the command `main-align doctor`, which checks the installation. It needs no package but torch."""

from __future__ import annotations

import os
import pkgutil
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..environment import installed, is_older, lowest_versions
from ..models.smollm2 import SMOLLM2_PACKAGE, SMOLLM2_REMEDY, converted_folder

INSTALL_HF, INSTALL_TRAIN = "pip install 'main-kernels[hf]'", "pip install 'main-kernels[train]'"
REQUIRED = ("transformers", "typer", "rich", "safetensors", "pyarrow")  # by main-align score
OPTIONAL = {
    "datasets": f"{INSTALL_HF} (only for `datasets` sources and for training)",
    "matplotlib": f"{INSTALL_HF} (only for --plot)",
    "jinja2": f"{INSTALL_HF} (only for main-align report)",
    "accelerate": f"{INSTALL_HF} (for training, and to convert the default model once)",
    "gguf": f"{INSTALL_HF} (to convert the default model once)",
    "sentencepiece": f"{INSTALL_HF} (only for tokenizers stored as tokenizer.model)",
    "trl": f"{INSTALL_TRAIN} (only for training)",
    "peft": f"{INSTALL_TRAIN} (for adapters)",
    "ray": "pip install 'main-kernels[ray]' (only for --engine ray and Ray Data)",
    "sentence-transformers": "pip install 'main-kernels[sentence-transformers]' (only for its losses)",
    "flash-attn": "optional: torch's own attention is the default; pip install 'main-kernels[flash]'",
}
# what is used of a package, where its import alone tries less; a colon precedes an attribute
USED = {
    "transformers": "transformers:AutoModelForCausalLM",
    "safetensors": "safetensors.torch",
    "pyarrow": "pyarrow.parquet",
    "matplotlib": "matplotlib.pyplot",
    "trl": "trl:SFTTrainer",
    "ray": "ray.data",
}
# pip keeps the wheel that it built without a compiler, and would install it again
BUILD_KERNELS = (
    "slower on a CPU: install a C++ compiler, then pip install --no-cache-dir --force-reinstall --no-deps main-kernels"
)
WIDTH = max(map(len, OPTIONAL))
"""characters of a name"""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the output: a component, its state, whether scoring works with it, and how to improve it."""

    name: str
    state: str
    ok: bool = True
    remedy: str = ""


def doctor() -> None:
    """Check backends, packages and the default model, and suggest fixes.

    The exit code is 1 if scoring with the default model cannot work.

    **Example**

    `main-align doctor`
    """
    raise SystemExit(run_doctor())


def run_doctor() -> int:
    """Print every check as soon as it is made. Return 0 if scoring with the default model works, else 1."""
    works = True
    for check in run_checks():
        print(f"{'ok' if check.ok else '!!'}  {check.name:<{WIDTH}} {check.state}", flush=True)
        if check.remedy:
            print(f"    {'':<{WIDTH}} -> {check.remedy}", flush=True)
        works = works and check.ok
    return 0 if works else 1


def run_checks() -> Iterator[Check]:
    """Check every component. A component that fails to load is reported as a failed check."""
    yield Check("python", f"{platform.python_version()} on {platform.machine()}")
    for component in (_torch, _backends, _packages, _model):
        yield from _guarded(component)


def _guarded(component: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    name = component.__name__.strip("_")
    try:
        yield from component()
    except Exception as error:  # any failure here is the answer to the user's question
        yield Check(name, f"{type(error).__name__}: {error}", False, "install it again")


def _torch() -> Iterator[Check]:
    if installed("torch") is None:
        yield Check("torch", "not installed", False, "pip install torch")
        return
    import torch

    from main_kernels.processor import has_fast_bfloat16

    yield _package("torch", torch.__version__, lowest_versions(), "pip install --upgrade torch")
    yield Check("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    yield Check("instruction set", torch.backends.cpu.get_cpu_capability())
    if has_fast_bfloat16():
        yield Check("bfloat16", "supported by the CPU; --dtype auto selects it")
    else:
        yield Check("bfloat16", "slow on this CPU, which has no instructions for it; --dtype auto selects float32")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Check("cuda", f"{torch.version.cuda}: {', '.join(names)}")
    else:
        why = "no device" if torch.version.cuda else "this torch is built without CUDA"
        yield Check("cuda", f"not used: {why}; everything runs on the CPU")


def _backends() -> Iterator[Check]:
    from main_kernels import backend_report

    for name, devices in backend_report().items():
        is_slow = name == "cpu" and devices.startswith("not available")
        yield Check(f"backend {name}", devices, remedy=BUILD_KERNELS if is_slow else "")


def _packages() -> Iterator[Check]:
    lowest = lowest_versions()
    for name, remedy in (dict.fromkeys(REQUIRED, INSTALL_HF) | OPTIONAL).items():
        yield _package(name, installed(name), lowest, remedy)


def _package(name: str, version: str | None, bounds: Mapping[str, str], remedy: str) -> Check:
    lowest = bounds.get(name)
    if version is None:
        return Check(name, "not installed", name in OPTIONAL, remedy)
    if lowest and is_older(version, lowest):
        return Check(name, f"{version}, older than {lowest}", name in OPTIONAL, remedy)
    try:
        pkgutil.resolve_name(USED.get(name, name.replace("-", "_")))
    except Exception as error:  # a package may raise anything if its own packages do not fit
        return Check(name, f"{version}, not usable: {type(error).__name__}: {error}", name in OPTIONAL, remedy)
    return Check(name, version)


def _model() -> Iterator[Check]:
    version = installed(SMOLLM2_PACKAGE)
    if version is None:
        state = f"{SMOLLM2_PACKAGE} is not installed; score needs --model"
        yield Check("default model", state, False, SMOLLM2_REMEDY)
        return
    folder = converted_folder(version)
    if folder.is_dir():
        yield Check("default model", f"{SMOLLM2_PACKAGE} {version}, converted in {folder}")
        return
    missing = [name for name in ("gguf", "accelerate") if installed(name) is None]
    state = f"needs {' and '.join(missing)} for its conversion" if missing else "converted on first use"
    yield Check("default model", f"{SMOLLM2_PACKAGE} {version}, {state}", not missing, INSTALL_HF if missing else "")
