"""Large shapes once each, in a process of their own, with their peak memory: no score matrix is ever stored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# name -> (what runs, megabytes of its scores, the most it may take over inputs and gradients)
CASES = {
    "info_nce N=16384 D=64, forward and backward": (
        "query, key = (F.normalize(torch.randn(16384, 64)).requires_grad_() for _ in range(2))\n"
        "ids = torch.arange(16384) // 2\n"
        "def run(): info_nce(query, key, temperature=0.5, pair_ids=ids, workspace_bytes=0).backward()\n",
        1074,
        200,
    ),
    "linear_cross_entropy T=2048 V=128256 D=64, forward and backward": (
        "query = torch.randn(2048, 64, requires_grad=True)\n"
        "key = torch.randn(128256, 64, requires_grad=True)\n"
        "targets = torch.randint(0, 128256, (2048,))\n"
        "def run(): linear_cross_entropy(query, key, targets, label_smoothing=0.1, z_loss=1e-4).backward()\n",
        1051,
        345,  # one chunk of 512 rows is 263
    ),
}

MEASURE = """
import torch
import torch.nn.functional as F
from main_kernels import info_nce, linear_cross_entropy

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

small = torch.randn(64, 8, requires_grad=True)
info_nce(small, small).backward()  # libraries and thread pools allocate on first use
torch.manual_seed(0)
{setup}
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
run()
leaves = [leaf for leaf in (query, key) if leaf.grad is not None]
assert all(leaf.grad.isfinite().all() and leaf.grad.any() for leaf in leaves)
print((kilobytes("VmHWM") - before) / 1e3 * 1.024 - sum(leaf.grad.nbytes for leaf in leaves) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("name", CASES)
def test_peak_memory_stays_within_the_budget(name):
    setup, scores, allowed = CASES[name]
    assert allowed < scores / 3
    command = [sys.executable, "-c", MEASURE.format(setup=setup)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < allowed
