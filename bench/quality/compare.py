"""differences: compare experiments with a plain one by seed and by resampled held-out pairs.

A difference can come from the seed (initial adapter weights, order of pairs) or from the choice of held-out pairs.
Seeds are therefore compared pairwise, and pairs are resampled jointly for both experiments.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .measures import BETTER, summary
from .results import Run

RESAMPLINGS = 1000


@dataclass(frozen=True)
class Change:
    """Mean difference to the plain experiment, with the interval that contains 95% of the resamplings."""

    mean: float
    low: float
    high: float
    verdict: int  # 1 better, -1 worse, 0 neither: the interval contains zero or the seeds disagree


@dataclass
class Table:
    """Runs by experiment, including the plain one, and the computed changes."""

    runs: dict[str, list[Run]]
    plain: str
    changes: dict[tuple[str, str], Change] = field(default_factory=dict)

    def values(self, experiment: str, metric: str) -> list[float]:
        """Return the metric of every seed."""
        return [run["metrics"][metric] for run in self.runs[experiment]]

    def change(self, experiment: str, metric: str) -> Change:
        """Return the change of one metric."""
        return self.changes[experiment, metric]


def differences(runs: Sequence[Run], *, plain: str, metrics: Iterable[str]) -> Table:
    """Compare every experiment with `plain` on the seeds that both have.

    Args:
        runs: all runs.
        plain: name of the reference experiment.
        metrics: metrics to compare.
    """
    table = Table(
        {
            experiment: [r for r in runs if r["experiment"] == experiment]
            for experiment in dict.fromkeys(r["experiment"] for r in runs)
        },
        plain,
    )
    references = {run["seed"]: run for run in table.runs[plain]}
    count = len(runs[0]["pairs"]["tokens"])
    samples = np.random.default_rng(0).integers(count, size=(RESAMPLINGS, count))
    drawn: dict[int, list[dict[str, float]]] = {}

    def resampled(run: Run) -> list[dict[str, float]]:
        if id(run) not in drawn:
            drawn[id(run)] = [summary(run["pairs"], rows) for rows in samples]
        return drawn[id(run)]

    for experiment, all_runs in table.runs.items():
        shared = [(run, references[run["seed"]]) for run in all_runs if run["seed"] in references]
        if experiment == plain or not shared:
            continue
        for metric in metrics:
            by_seed = [run["metrics"][metric] - reference["metrics"][metric] for run, reference in shared]
            by_sample = [
                [a[metric] - b[metric] for a, b in zip(resampled(run), resampled(reference), strict=True)]
                for run, reference in shared
            ]
            low, high = np.quantile(np.mean(by_sample, axis=0), (0.025, 0.975)).tolist()
            sign = 1 if statistics.fmean(by_seed) > 0 else -1
            is_clear = (low > 0 or high < 0) and all(value * sign > 0 for value in by_seed)
            table.changes[experiment, metric] = Change(
                statistics.fmean(by_seed), low, high, sign * BETTER[metric] if is_clear else 0
            )
    return table
