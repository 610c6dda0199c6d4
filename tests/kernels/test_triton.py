"""Who is served by the Triton backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from main_kernels import backends
from main_kernels.backends import registry

ROOT = Path(__file__).parents[2]


def on_cuda(dtype: torch.dtype = torch.bfloat16):  # type: ignore[no-untyped-def]
    return SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)


@pytest.mark.parametrize(
    ("capability", "why_not", "dtype", "want"),
    [
        ((7, 5), "", torch.float32, "plain"),
        ((8, 0), "", torch.float32, "triton"),
        ((9, 0), "", torch.bfloat16, "triton"),
        ((9, 0), "", torch.float64, "plain"),
        ((9, 0), "triton did not load", torch.bfloat16, "plain"),
    ],
)
def test_the_backend_serves_supported_tensors_only(monkeypatch, capability, why_not, dtype, want):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a device")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(registry, "load_triton", lambda: why_not)
    assert backends.select_backend(on_cuda(dtype)) == want
    line = backends.backend_report()["cuda:0"]
    assert ("Triton kernels" in line) == (capability >= (8, 0) and not why_not)
    assert why_not in line


@pytest.mark.skipif(torch.cuda.is_available() or registry.load_triton() == "", reason="there is one")
def test_fake_tensors_of_a_missing_gpu_select_the_plain_backend():
    """As FakeTensorMode makes them."""
    assert backends.select_backend(on_cuda()) == "plain"


def test_a_machine_without_a_gpu_does_not_import_the_kernels():
    code = "import sys, main_kernels as m; m.backend_report(); assert 'main_kernels.backends.triton' not in sys.modules"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if not torch.cuda.is_available():
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
        with pytest.raises(ValueError, match="triton"):
            backends.get_backend("triton")
