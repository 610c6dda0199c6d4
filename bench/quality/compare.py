"""Arms against a plain one: differences of the same seed, and what resampling the held-out pairs makes of them.

Two things can make a difference look real that is not: the seed (the adapter's first weights, the order of pairs) and
which pairs happened to be held out. Seeds are compared pairwise, pairs are resampled jointly for both experiments.
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
    """Mean difference to the plain experiment, and the interval that holds 95% of the resamplings."""

    mean: float
    low: float
    high: float
    verdict: int  # 1 better, -1 worse, 0 neither: the interval holds zero, or the seeds do not agree


@dataclass
class Table:
    """Runs by experiment, the plain experiment among them, and the changes that were worked out."""

    runs: dict[str, list[Run]]
    plain: str
    changes: dict[tuple[str, str], Change] = field(default_factory=dict)

    def values(self, experiment: str, metric: str) -> list[float]:
        """One a seed."""
        return [run["metrics"][metric] for run in self.runs[experiment]]

    def change(self, experiment: str, metric: str) -> Change:
        return self.changes[experiment, metric]


def differences(runs: Sequence[Run], *, plain: str, metrics: Iterable[str]) -> Table:
    """Every experiment against `plain`, for seeds that both have."""
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

    for experiment, own in table.runs.items():
        shared = [(run, references[run["seed"]]) for run in own if run["seed"] in references]
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
            sure = (low > 0 or high < 0) and all(value * sign > 0 for value in by_seed)
            table.changes[experiment, metric] = Change(
                statistics.fmean(by_seed), low, high, sign * BETTER[metric] if sure else 0
            )
    return table
