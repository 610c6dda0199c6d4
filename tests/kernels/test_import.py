"""Importing the library costs little more than importing torch: every worker process pays it."""

from __future__ import annotations

import subprocess
import sys

import torch

from main_kernels.backends import registry

HEAVY = ["torch._dynamo", "torch._inductor", "torch.utils.flop_counter", "torch.distributed.tensor", "triton"]


def test_the_import_loads_no_compiler():
    script = "import sys, torch; before = set(sys.modules); import main_kernels; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = done.stdout.split()
    assert "main_kernels" in imported
    assert not [name for name in HEAVY if name in imported]
    assert len(imported) < 60


def test_constants_are_marked_as_the_compiler_marks_them():
    """The backend's name is marked by hand, as the decorator would import the compiler."""

    @torch.compiler.assume_constant_result
    def marked() -> None: ...

    assert vars(marked).items() <= vars(registry.why_not_triton).items()
