"""The sliders' counts are those of the filter's own rule, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from main_align.filtering.rules import Rule, select
from main_align.reporting.simulation import SHARES, Grouping, Simulation, round_limits, simulate

COLUMN = {True: "nll_y", False: "mutual"}


def made(kind: str) -> np.ndarray:
    generator = np.random.default_rng(3)
    values = {
        "smooth": generator.normal(size=203) * 7,
        "ties": generator.integers(0, 5, size=203) / 10.0,
        "constant": np.full(203, 0.25),
        "few": np.array([0.0, 1e-9, 3.0]),
        "one": np.array([-2.5]),
        "tails": np.concatenate([generator.normal(size=200), [-np.inf, np.inf, 1e12]]),
        "tiny": generator.normal(size=203) * 1e-12,
    }[kind]
    if len(values) > 3:
        values[generator.random(len(values)) < 0.1] = np.nan
    return values


def groups(rows: int) -> list[Grouping]:
    return [
        Grouping("all", ["all"], np.zeros(rows, dtype=np.int64)),
        Grouping("thirds", ["a", "b", "c"], np.arange(rows) % 3),
    ]


def counted(table: list[int], first: int, last: int, labels: int) -> list[int]:
    """Add the rows of the positions first to last, as the page's script does."""
    return np.array(table).reshape(-1, labels)[first : last + 1].sum(0).tolist()


KINDS = ["smooth", "ties", "constant", "few", "one", "tails", "tiny"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lower_is_better", [True, False])
def test_a_share_keeps_the_rows_of_the_filter(kind: str, lower_is_better: bool) -> None:
    values = made(kind)
    found = simulate(values, lower_is_better, groups(len(values)))
    for position, share in enumerate(SHARES):
        kept = select(values, COLUMN[lower_is_better], Rule(keep=share))
        assert np.array_equal((found.share_of >= 0) & (found.share_of <= position), kept)
        assert found.cuts[position] == (values[kept].max() if lower_is_better else values[kept].min())
        for grouping, table in zip(groups(len(values)), found.shares, strict=True):
            assert counted(table, 0, position, len(grouping.labels)) == grouping.count(grouping.codes[kept])


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_limits_keeps_the_rows_of_the_filter(kind: str) -> None:
    values = made(kind)
    found = simulate(values, False, groups(len(values)))
    last = 2 * len(found.limits)
    for low in [None, *range(0, len(found.limits), 7)]:
        for high in [None, *range(0, len(found.limits), 5)]:
            limits = [None if place is None else found.limits[place] for place in (low, high)]
            if limits == [None, None] or (low is not None and high is not None and low > high):
                continue
            kept = select(values, "mutual", Rule(min=limits[0], max=limits[1]))
            first, end = 0 if low is None else 2 * low + 1, last if high is None else 2 * high + 1
            assert np.array_equal((found.cell_of >= first) & (found.cell_of <= end), kept)
            for grouping, table in zip(groups(len(values)), found.cells, strict=True):
                assert counted(table, first, end, len(grouping.labels)) == grouping.count(grouping.codes[kept])


@pytest.mark.parametrize("kind", KINDS)
def test_limits_are_few_ascending_and_short(kind: str) -> None:
    limits = round_limits(made(kind)[np.isfinite(made(kind))])
    assert 1 <= len(limits) <= 70
    assert limits == sorted(set(limits))
    if kind in ("smooth", "ties", "few", "tiny"):
        assert max(len(repr(limit)) for limit in limits) <= 8


def test_limits_on_values_count_these_values() -> None:
    values = np.array([0.1, 0.2, 0.2, 0.3])
    found: Simulation = simulate(values, False, groups(4))
    place = found.limits.index(0.2)
    assert counted(found.cells[0], 2 * place + 1, 2 * len(found.limits), 1) == [3]
    assert counted(found.cells[0], 0, 2 * place + 1, 1) == [3]


def test_the_extremes_are_the_best_and_the_worst_rows() -> None:
    values = np.arange(100.0)
    assert simulate(values, True, groups(100)).extremes.tolist() == [*range(10), *range(90, 100)]
