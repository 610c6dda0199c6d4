"""Every Triton kernel on the CPU: by Triton's interpreter, and from its TTIR."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.longest
def test_the_kernels_pass_under_the_interpreter():
    """In a process of its own: what TRITON_INTERPRET says when triton is imported is final. tests/triton/conftest.py
    leaves out what needs a compiler."""
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "tests/triton"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


@pytest.mark.longest
def test_the_kernels_pass_from_their_ttir():
    """The quick part of `make ttir`, in a process of its own, which pretends to have a GPU."""
    pytest.importorskip("ttsem", reason="ttsem is not installed, see tests/ttir/__main__.py")
    command = [sys.executable, "-m", "tests.ttir", "-q", "-m", "not slow"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
