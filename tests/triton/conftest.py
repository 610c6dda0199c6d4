"""The Triton backend under test: interpreted in a process with TRITON_INTERPRET=1 (tests/test_interpreters.py starts
one), compiled ahead of time in any other."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import settings

from main_kernels import backends
from main_kernels.sweep import plan

from .interpreter import repair

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = ["test_aot.py", "test_launch.py", "test_no_device.py", "test_versions.py"]
collect_ignore = COMPILED if INTERPRETED else ["test_library.py", "test_fused.py"]

if INTERPRETED:
    from bench.device.variants import TABLES
    from main_kernels.backends.triton import configs

    repair()
    # The interpreter takes milliseconds per tile, of any size: use few large ones. test_aot.py compiles the real ones.
    for name in TABLES:
        tiles = (replace(tile, BLOCK_M=512, BLOCK_N=512, BLOCK_K=128) for tile in getattr(configs, name))
        setattr(configs, name, tuple(tiles))
    configs.TARGET_SCORES = replace(configs.TARGET_SCORES, BLOCK_M=512, BLOCK_K=128)
    configs.REDUCE_ROWS = replace(configs.REDUCE_ROWS, BLOCK_M=256, BLOCK_N=512)
    configs.REDUCE_COLUMNS = replace(configs.REDUCE_COLUMNS, BLOCK_M=512, BLOCK_N=256)
    configs.REDUCE_BOTH = replace(configs.REDUCE_BOTH, BLOCK_M=512, BLOCK_N=256, SPAN=2)
    configs.REDUCE_BOTH_SHORT = configs.REDUCE_BOTH
    configs.SCORE_GRAD = replace(configs.SCORE_GRAD, BLOCK_M=256, BLOCK_N=512)
    configs.REDUCE_PARTIALS = replace(configs.REDUCE_PARTIALS, BLOCK_N=512)
    configs.ROW_LOSS = replace(configs.ROW_LOSS, BLOCK_M=64, BLOCK_N=512)
    configs.ROW_LOSS_SHORT = configs.ROW_LOSS
    configs.DIVERGENCE = replace(configs.DIVERGENCE, BLOCK_M=64, BLOCK_N=512)
    configs.SPLIT_FLOAT32 = replace(configs.SPLIT_FLOAT32, BLOCK=1 << 16)
    settings.register_profile("interpreted", settings.get_profile("quick"), max_examples=6)
    settings.load_profile("interpreted")


@pytest.fixture(autouse=True)
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> bool:
    """A GPU multiplies bfloat16 matrices, whatever the CPU that stands in for it does."""
    monkeypatch.setattr(plan, "has_fast_bfloat16", lambda: True)
    return True


@pytest.fixture(params=["triton"])
def backend():  # type: ignore[no-untyped-def]
    """Replaces the fixture that draws every backend of the CPU; the kernels do not support float64."""
    with backends.use_backend("triton"):
        yield "cpu"
