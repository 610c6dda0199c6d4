"""The oldest Triton that pyproject.toml allows, which `make setup` installs beside the newest, translates every kernel.

torch 2.11, which runs on machines of today, comes with it. It accepts less of Python than later versions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLDEST = Path(sys.prefix) / "triton-oldest"
# Every kernel with all that it can do. `bench aot --ttir` without -k does other shapes and dtypes as well.
CASES = ["8192x32768", "everything", "row_loss", "divergence KL", "divergence JS both", "planes", "into"]


@pytest.mark.slow
@pytest.mark.longest
@pytest.mark.skipif(not OLDEST.exists(), reason="make setup installs it")
def test_the_oldest_triton_translates_every_kernel():
    oldest = re.search(r'"triton>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (OLDEST, ROOT, ROOT / "python")))}
    command = [sys.executable, "-m", "bench", "aot", "-a", "90", "--ttir", "-k", *CASES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"Triton {oldest[1]}." in done.stdout
