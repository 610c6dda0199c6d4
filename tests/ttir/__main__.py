"""Run the tests of this folder under ttsem, which executes every launch: python -m tests.ttir [arguments of pytest].

    pip install --no-deps --ignore-requires-python ttsem==0.1.0

A store or a load out of bounds, and two programs that touch the same element while one of them writes it, fail the test
at the kernel's line. Memory from torch.empty is NaN.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ttsem import ops
from ttsem.sanitize import run_pytest

FOLDER = str(Path(__file__).parent)

# what Triton makes of exp, log and division in float32; without them a launch is refused as unsupported
ops._EXTERN |= {"__nv_fast_expf": (1, np.exp), "__nv_fast_logf": (1, np.log), "__nv_fast_fdividef": (2, np.divide)}
sys.exit(run_pytest([FOLDER, "--confcutdir", FOLDER, "-p", "no:cacheprovider", *sys.argv[1:]]))
