"""The compiled CUDA code without a device: no spills, and no driver needed."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

from main_kernels import backends
from main_kernels.backends import cuda, registry

ROOT = Path(__file__).parents[2]
ARCHITECTURE = "sm_90a"  # one of setup.py's three: each takes ptxas a quarter of a minute
KERNELS = 15  # two of the states, in three dtypes, in words of 16 bytes and by element, and three without


@pytest.mark.slow
def test_no_kernel_spills(tmp_path, monkeypatch):
    """With the flags that setup.py compiles with, on one architecture and without the host's code."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    flags = runpy.run_path("setup.py")["NVCC"]
    told = ""
    for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
        command = ["nvcc", *flags, f"-arch={ARCHITECTURE}", "-Xptxas=-v", "-cubin", str(source)]
        command += ["-o", str(tmp_path / "kernels.cubin")]
        told += subprocess.run(command, capture_output=True, text=True, check=True).stderr
    pattern = (
        r"entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    )
    kernels = re.findall(pattern, told, re.DOTALL)
    print(*(f"{arch} {name}: {registers} registers" for name, arch, *_, registers in kernels), sep="\n")
    assert {arch for _, arch, *_ in kernels} == {ARCHITECTURE}
    assert len(kernels) == KERNELS
    assert [name for name, _, stack, spills, _ in kernels if int(stack) or int(spills)] == []
    assert max(int(registers) for *_, registers in kernels) <= 128  # two blocks of 256 threads on a processor


def test_architectures_are_parsed_like_torchs(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    flags = runpy.run_path("setup.py")["architecture_flags"]
    assert flags("9.0a") == ["-gencode=arch=compute_90a,code=sm_90a"]
    assert flags("8.0+PTX;9.0a") == flags("8.0+PTX 9.0a")
    assert flags("8.0+PTX") == ["-gencode=arch=compute_80,code=[sm_80,compute_80]"]
    with pytest.raises(SystemExit, match="got 'Hopper'"):
        flags("8.0;Hopper")


def test_the_module_needs_no_driver():
    """Neither to be loaded nor to be asked for what it has; a launch says what is missing."""
    if cuda.MODULE is None:
        assert cuda.WHY_NOT
        pytest.skip(cuda.WHY_NOT)
    code = """
import importlib
module = importlib.import_module("main_kernels._C")
assert module.cuda_pool_pieces(64, 2) == 5 and module.cuda_pool_pitch(5) == 8
assert not any("libcuda.so" in line or "libcudart" in line for line in open("/proc/self/maps"))
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_launch_without_a_device_is_an_error():
    if cuda.MODULE is None or torch.cuda.is_available():
        pytest.skip(cuda.WHY_NOT or "there is a device")
    assert cuda.why_not()
    with pytest.raises(RuntimeError, match="main_kernels: cudaSetDevice: "):
        cuda.MODULE.cuda_pool_forward(
            cuda.MODULE.CudaStates(), cuda.MODULE.Pooling(), cuda.MODULE.Pooled(), cuda.MODULE.CudaTarget()
        )


def test_doctor_reports_the_pooling_of_a_device(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a device")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(registry, "load_triton", lambda: "")
    for why_not, words in (("", "pooling by CUDA C++"), ("an old driver", "pooling plain (an old driver)")):
        monkeypatch.setattr(cuda, "why_not", lambda why_not=why_not: why_not)
        assert words in backends.backend_report()["cuda:0"]


def test_doctor_reports_whether_they_are_compiled_in(monkeypatch):
    monkeypatch.setattr(cuda, "WHY_NOT", "")
    assert "segment pooling" in backends.backend_report()["cuda"]
    monkeypatch.setattr(cuda, "WHY_NOT", "main_kernels._C was built without CUDA")
    assert backends.backend_report()["cuda"] == "not available (main_kernels._C was built without CUDA)"
