"""pytest-benchmark suite of the ops, to track one machine over time: python -m pytest bench --benchmark-autosave

Use `python -m bench.kernels` for ratios to matrix products and peers; it interleaves its contenders.
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
