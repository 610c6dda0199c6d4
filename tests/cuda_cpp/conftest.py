"""The CUDA C++ without a GPU: csrc/cuda/ compiled as C++ over an emulator of blocks and barriers (emulator/), under
UndefinedBehaviorSanitizer, which stops at a misaligned read of 16 bytes or an index outside shared memory."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from main_kernels import backends
from main_kernels.backends import cuda, registry

from ..kernels.contract import DEVICE

collect_ignore = ["test_pooling.py"] if DEVICE == "cuda" else []  # the emulated kernels have no such tensors
ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
FLAGS += ["-U_FORTIFY_SOURCE"]  # its longjmp refuses to change stacks
SANITIZE = ["-fsanitize=undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]
BINDINGS = ROOT / "tests/cuda_cpp/emulator/module.cpp"


def run(command: list[object]) -> None:
    subprocess.run([str(word) for word in command], check=True)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    pybind11 = pytest.importorskip("pybind11")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulator with")
    folder = tmp_path_factory.mktemp("emulated")
    includes = [ROOT / "tests/cuda_cpp/emulator", ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    objects = []
    for source in (*sorted(ROOT.glob("csrc/cuda/*.cu")), BINDINGS):  # of inline functions, the linker takes the first
        objects.append(folder / f"{source.stem}.o")
        own = ["-O0"] if source == BINDINGS else ["-O1", *SANITIZE]  # pybind11's code takes long with them
        flags = [*FLAGS, *own, *(f"-I{each}" for each in includes), "-x", "c++", "-c"]
        run([compiler, *flags, source, "-o", objects[-1]])
    target = folder / "_emulated.so"
    run([compiler, "-shared", *SANITIZE, *objects, "-o", target])
    spec = importlib.util.spec_from_file_location("_emulated", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backend(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Takes the place of the fixture that draws the backends of the machine: pooling by the emulated kernels, on
    tensors of the CPU. Whatever is allocated for them starts as NaN, so that what nothing wrote shows."""

    def poisoned(like: Tensor, *size: int, **options: torch.dtype) -> Tensor:
        return torch.full(size, torch.nan, dtype=options.get("dtype", like.dtype))

    monkeypatch.setattr(cuda, "MODULE", emulated)
    monkeypatch.setattr(cuda, "_supports", lambda tensor, dtype: dtype in cuda._DTYPES)
    monkeypatch.setattr(cuda, "_target", lambda tensor: emulated.CudaTarget())
    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    monkeypatch.setitem(registry.BACKENDS, "emulated", cuda.CudaPooling())
    with backends.use_backend("emulated"):
        yield "emulated"
