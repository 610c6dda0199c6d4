"""The Triton backend under test: under Triton's interpreter, in a process that was started with TRITON_INTERPRET=1
(tests/kernels/test_triton.py starts one), and compiled ahead of time in any other."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from main_kernels import backends
from main_kernels.sweep import plan

from .interpreter import repair

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = ["test_aot.py", "test_launch.py", "test_no_device.py"]
collect_ignore = COMPILED if INTERPRETED else ["test_library.py", "test_fused.py"]

if INTERPRETED:
    from main_kernels.backends.triton import matmul_tile, reduce_partials, split_float32, unfused

    walked = [
        tile
        for table in (matmul_tile.FORWARD, matmul_tile.WEIGH)
        for tiles in table.values()
        for tile in tiles.values()
    ]
    repair()
    # a tile takes the interpreter some milliseconds whatever its size; test_aot.py compiles the real ones
    for config, size in (
        (unfused.REDUCE_ROWS, {"BM": 256, "BN": 512}),
        (unfused.REDUCE_COLUMNS, {"BM": 512, "BN": 256}),
        (unfused.WEIGH, {"BM": 256, "BN": 512}),
        (reduce_partials.COMBINE, {"BN": 512}),
        (split_float32.PLANES, {"BLOCK": 1 << 16}),
        *((tile, {"BM": 512, "BN": 512, "BD": 128}) for tile in walked),
        *((tile, {"BM": 512, "BD": 128}) for tile in matmul_tile.TARGETS[80].values()),
    ):
        config.update(size)
    settings.register_profile("interpreted", settings.get_profile("quick"), max_examples=6)
    settings.load_profile("interpreted")


@pytest.fixture(autouse=True)
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> bool:
    """A GPU multiplies bfloat16 matrices, whatever the CPU that stands in for it does."""
    monkeypatch.setattr(plan, "has_fast_bfloat16", lambda: True)
    return True


@pytest.fixture(params=["triton"])
def backend():  # type: ignore[no-untyped-def]
    """Takes the place of the fixture that draws every backend of the CPU: float64 is served by none of the kernels."""
    with backends.use_backend("triton"):
        yield "cpu"
