"""pytest-benchmark suite of the ops, to watch one machine over time: python -m pytest bench --benchmark-autosave

For ratios to matrix products and to the peers use kernels.py, which interleaves what it compares.
"""

from __future__ import annotations

import pytest

from .cases import CASES, Absent, Case


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_op(benchmark, case: Case, dtype: str):
    run = case.row(dtype, case.shapes["small"]).contenders["ours"].run
    try:
        run()
    except Absent as absent:
        pytest.skip(str(absent))
    benchmark(run)
