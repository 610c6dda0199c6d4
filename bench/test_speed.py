"""pytest-benchmark suite: every op and its peers, one by one, to follow one machine over time.

    python -m pytest bench -k "info_nce and small" --benchmark-autosave
    python -m pytest bench -k "large and bfloat16" --benchmark-compare --benchmark-histogram

Groups are op, size, dtype and phase. `extra_info` has the floor's best time and the ratio to it. Contenders follow one
another here; `python -m bench kernels` lets them take turns, so its ratios are the ones to quote.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .cases import CASES, DEFAULT_SIZES, Absent
from .measure import interleaved

FLOOR_ROUNDS = 5


def contenders() -> Iterator[object]:
    for case in CASES.values():
        for size in DEFAULT_SIZES:
            for dtype in case.dtypes(size):
                for name in case.tiny(dtype).contenders:
                    yield pytest.param(case.name, size, dtype, name, id=f"{case.name}-{size}-{dtype}-{name}")


@pytest.mark.parametrize(("case", "size", "dtype", "contender"), list(contenders()))
def test_op(benchmark, case: str, size: str, dtype: str, contender: str):
    op = CASES[case]
    row = op.row(dtype, op.shapes[size])
    chosen = row.contenders[contender]
    try:
        chosen.run()
    except Absent as absent:
        pytest.skip(str(absent))
    benchmark.group = f"{case} {size} {dtype} {chosen.phase}"
    benchmark(chosen.run)
    target = next((t for t in op.targets if row.contenders[t.run].phase == chosen.phase), None)
    if target and target.against in row.floors:
        floors = {str(place): way for place, way in enumerate(row.floors[target.against])}
        best = min(min(taken) for taken in interleaved(floors, FLOOR_ROUNDS).values())
        benchmark.extra_info.update(floor=target.against, floor_s=best, ratio=benchmark.stats.stats.min / best)
