"""Ratio, noise_of and verdict_of: what the samples of a row say. Every table, picture and check reads them here."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("floor", "ours", "again", "peer")
"""floor: bare products or another op; again: the same code as one of ours; peer: eager torch and other libraries."""


MEDIAN_ERROR = 0.93
"""The standard error of a median of n normal values, times sqrt(n), in units of their interquartile range."""


@dataclass(frozen=True)
class Ratio:
    """Time of one run in units of another.

    Args:
        median: the median over the rounds, or the ratio of the medians if the runs did not take turns.
        low: the lower quartile over the rounds.
        high: the upper quartile.
    """

    median: float
    low: float
    high: float


def ratio_of(row: Mapping[str, Any], run: str, against: str, quantity: str = "time") -> Ratio | None:
    """Return the ratio of two runs of a row.

    Args:
        row: a row of bench/records.py.
        run: a name in its runs.
        against: another name.
        quantity: "time" or "memory".

    Returns:
        The ratio; None if one of the two was not measured.
    """
    mine, other = row["runs"].get(run, {}), row["runs"].get(against, {})
    if quantity == "memory":
        if mine.get("peak_mb") is None or not other.get("peak_mb"):
            return None
        value = mine["peak_mb"] / other["peak_mb"]
        return Ratio(value, value, value)
    if not mine.get("samples_s") or not other.get("samples_s"):
        return None
    if len(mine["samples_s"]) != len(other["samples_s"]):
        value = median_of(mine) / median_of(other)
        return Ratio(value, value, value)
    paired = sorted(a / b for a, b in zip(mine["samples_s"], other["samples_s"], strict=True))
    if len(paired) < 2:
        return Ratio(paired[0], paired[0], paired[0])
    low, middle, high = statistics.quantiles(paired, n=4, method="inclusive")
    return Ratio(middle, low, high)


def median_of(run: Mapping[str, Any]) -> float:
    """Return the median seconds of a run that was measured."""
    return statistics.median(run["samples_s"])


def noise_of(row: Mapping[str, Any]) -> float | None:
    """Return how far apart the same code is that was timed twice: |its median ratio - 1|, or the standard error of that
    median if it is larger.

    A smaller difference between two runs of the row is none. None if nothing was timed twice.
    """
    for name in row["runs"]:
        if row["runs"][name]["role"] == "again":
            twice = ratio_of(row, name, name.removesuffix("_again"))
            if twice is not None:
                rounds = len(row["runs"][name]["samples_s"])
                return max(abs(twice.median - 1), MEDIAN_ERROR * (twice.high - twice.low) / rounds**0.5)
    return None


def verdict_of(row: Mapping[str, Any], target: Mapping[str, Any]) -> str | None:
    """Judge a target of a row.

    Returns:
        "goal", "must" (met, but not the goal), "missed", or "noise": nearer to the limit than the same code timed
        twice; None without a limit or without a measurement.
    """
    got = ratio_of(row, target["run"], target["against"], target["quantity"])
    if got is None or target["must"] is None:
        return None
    noise = (noise_of(row) or 0.0) if target["quantity"] == "time" else 0.0
    if got.median > target["must"] * (1 + noise):
        return "missed"
    if got.median * (1 + noise) > target["must"]:
        return "noise"
    return "goal" if target["goal"] is not None and got.median <= target["goal"] else "must"


def main_run(row: Mapping[str, Any], phase: str) -> str | None:
    """Return the name of our first run of a phase that was measured."""
    return next((name for name, run in measured(row, "ours") if run["phase"] == phase), None)


def measured(row: Mapping[str, Any], role: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the measured runs of a role by name."""
    for name, run in row["runs"].items():
        if run["role"] == role and run.get("samples_s"):
            yield name, run


def ahead(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """Yield where a peer is ahead of us in a row.

    Yields:
        Our run, the peer, "time" or "memory", and how many times we need what the peer needs. Peers whose results
        differ, and differences within the noise, are left out; so are differences of memory below 1 MB.
    """
    noise = noise_of(row) or 0.0
    for phase in dict.fromkeys(run["phase"] for run in row["runs"].values()):
        ours = main_run(row, phase)
        if ours is None:
            continue
        for name, peer in measured(row, "peer"):
            if peer["phase"] != phase or name in row["differing"]:
                continue
            time = ratio_of(row, ours, name)
            if time is not None and time.median > 1 + noise:
                yield ours, name, "time", time.median
            memory = ratio_of(row, ours, name, "memory")
            if memory is not None and row["runs"][ours]["peak_mb"] > row["runs"][name]["peak_mb"] + 1:
                yield ours, name, "memory", memory.median
