"""Numbers of the loop study: rank correlations, selections and differences, each with an interval by resampling."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compare import Change
from .results import Run

RESAMPLINGS = 2000
GROUPS = 10  # of responses of similar length
GATE = ("random", "oracle")
ENDPOINTS = {"nll": -1, "gap": 1}
"""endpoints of part B: +1 if higher is better, -1 if lower is better"""
CRITERIA = {
    "forward_nll": ("nll_y_given_x", -1),
    "mutual": ("mutual", 1),
    "mutual_novel": ("mutual_novel", 1),
    "pmi_forward": ("pmi_forward", 1),
}
"""criteria of part A: the column of the scores, and +1 if higher is better, -1 if lower is better"""
Floats = NDArray[np.float64]


def goodness(loop: Mapping[str, Any], criterion: str) -> Floats:
    """Return float64[n], a criterion with the better values above, NaN for a pair without a score."""
    values = np.array([np.nan if each is None else each for each in loop["scores"][criterion]], np.float64)
    return values * CRITERIA[criterion][1]


def scored_rows(loop: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the rows with every criterion and a similarity."""
    complete = np.array([each is not None for each in loop["similarity"]])
    return np.flatnonzero(complete & ~np.isnan([goodness(loop, each) for each in CRITERIA]).any(0))


def keep_half(loop: Mapping[str, Any], order: str, seed: int = 0) -> list[int]:
    """Return half of the scored rows, half of each group of similar length of y, in the order of the rows.

    Args:
        loop: the pairs of the loop.
        order: "random", or the criterion whose best rows are kept.
        seed: random seed of "random".
    """
    rows = scored_rows(loop)
    values = np.random.default_rng(seed).random(len(rows)) if order == "random" else goodness(loop, order)[rows]
    by_length = np.argsort(np.array(loop["tokens_y"])[rows], kind="stable")
    kept = [
        group[np.argsort(-values[group], kind="stable")][: len(group) // 2]
        for group in np.array_split(by_length, GROUPS)
    ]
    return np.sort(rows[np.concatenate(kept)]).tolist()


def spearman(one: Floats, other: Floats) -> float:
    """Return the correlation of the ranks; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], np.float64)


def resampled(statistic: Callable[[NDArray[np.int64]], Floats], count: int) -> Floats:
    """Return float64[RESAMPLINGS, ...], the statistic of rows that are drawn with replacement from `count` ones."""
    draw = np.random.default_rng(0)
    return np.array([statistic(draw.integers(count, size=count)) for _ in range(RESAMPLINGS)])


def correlations(loop: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return part A: of each criterion its correlation, and its difference to forward_nll with two intervals."""
    rows = scored_rows(loop)
    similarity = np.array(loop["similarity"], object)[rows].astype(np.float64)
    values = [goodness(loop, each)[rows] for each in CRITERIA]

    def statistic(at: NDArray[np.int64]) -> Floats:
        return np.array([spearman(each[at], similarity[at]) for each in values])

    whole, samples = statistic(np.arange(len(rows))), resampled(statistic, len(rows))
    out = {}
    for place, name in enumerate(CRITERIA):
        difference = samples[:, place] - samples[:, 0]
        kept = np.array(loop["similarity"], object)[keep_half(loop, name)].astype(np.float64)
        out[name] = {
            "value": float(whole[place]),
            "interval": np.quantile(samples[:, place], (0.025, 0.975)).tolist(),
            "difference": float(whole[place] - whole[0]),
            "interval_98.3": np.quantile(difference, (0.0083, 0.9917)).tolist(),
            "kept": float(kept.mean() - similarity.mean()),
        }
    return out


def better_default(parts: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the criterion that replaces forward_nll by the rule of part A, or None."""
    better = [name for name, part in parts.items() if part["interval_98.3"][0] > 0]
    return max(better, key=lambda name: parts[name]["value"], default=None)


def endpoint(run: Run, name: str, rows: NDArray[np.int64] | slice = slice(None)) -> float:
    """Return an endpoint of part B over held-out pairs, in nats per token.

    Args:
        run: a run of part B.
        name: "nll" or "gap".
        rows: the pairs. Default: all.
    """
    tokens = np.asarray(run["tokens"])[rows].sum()
    true, neighbour = (np.asarray(run[each])[rows].sum() / tokens for each in ("nll", "nll_neighbour"))
    return float(true if name == "nll" else neighbour - true)


def _arrays(run: Run) -> Run:
    """Return what `endpoint` reads as arrays, for thousands of draws of rows."""
    return {each: np.array(run[each]) for each in ("tokens", "nll", "nll_neighbour")}


def change(runs: Sequence[Run], arm: str, name: str, reference: str = GATE[0]) -> Change | None:
    """Return the mean difference of an arm to the reference over the seeds that both have, or None without one."""
    arms = {each: {run["seed"]: _arrays(run) for run in runs if run["experiment"] == each} for each in (arm, reference)}
    seeds = sorted(arms[arm].keys() & arms[reference].keys())
    if not seeds:
        return None

    def by_seed(rows: NDArray[np.int64] | slice) -> list[float]:
        return [endpoint(arms[arm][seed], name, rows) - endpoint(arms[reference][seed], name, rows) for seed in seeds]

    values = by_seed(slice(None))
    count = len(arms[arm][seeds[0]]["tokens"])
    low, high = np.quantile(resampled(lambda rows: np.array(by_seed(rows)), count).mean(1), (0.025, 0.975)).tolist()
    mean = statistics.fmean(values)
    is_clear = (low > 0 or high < 0) and all(value * mean > 0 for value in values)
    return Change(mean, low, high, (1 if mean > 0 else -1) * ENDPOINTS[name] if is_clear else 0)


def gate_passes(runs: Sequence[Run], seeds: Collection[int]) -> bool:
    """Return True if the gate of part B has all its runs and the oracle is better than random in one endpoint.

    Args:
        runs: the runs of the study.
        seeds: the seeds of the gate.
    """
    own = [run for run in runs if run["experiment"] in GATE and run["seed"] in seeds]
    changes = [change(own, "oracle", name) for name in ENDPOINTS]
    complete = len(own) == len(GATE) * len(seeds)
    return complete and any(each is not None and each.verdict > 0 for each in changes)
