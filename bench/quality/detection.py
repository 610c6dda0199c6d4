"""detection: how well each score tells good pairs from corrupted ones, with bootstrap intervals.

Every value comes from the cached passes through the functions of main_align.scoring, so it equals the scorer's. The
reference bank of a pair consists of the good pairs of other folds: a pair in its own bank would look better than it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from main_align.filtering.limits import RECOMMENDED
from main_align.scoring.bank import Bank, PairStates
from main_align.scoring.columns import COLUMNS, SCORES, likelihood_scores, lower_is_better, token_scores
from main_align.scoring.flags import FLAGS, is_refusal
from main_align.scoring.ngrams import NGRAM, ngram_size, novel_sum
from numpy.typing import NDArray

from .corruptions import Case
from .passes import LOGPS, Passes

Floats = NDArray[np.float64]

GOOD_OF = {"wrong_input": "good_input", "missing_input": "good_input", "swapped_system": "good_system"}
"""the kind of good pairs that a kind is compared with; `good` if it is not listed"""
FLAG_OF = {"echo": ("echo", "echo_neighbour"), "cut_off": ("truncated",), "refusal": ("refusal",)}
"""the kinds that each flag is meant to find"""
FOLDS = 3
TEMPERATURE = 0.07
RESAMPLINGS = 1000


def values_of(cases: Sequence[Case], passes: Mapping[str, Passes]) -> dict[str, Floats]:
    """Return every score of every case, float64[n]: higher is better, and rivals of the scores.

    Args:
        cases: the n cases.
        passes: the passes by pair id.
    """
    found = [passes[case.pair.id] for case in cases]
    logp = np.array([[p.logp[name].astype(np.float64).sum() for name in LOGPS] for p in found])
    counts = {f"tokens_{side}": np.array([len(p.logp[side]) for p in found]) for side in "xy"}
    novel, fixed = (np.array([_novel(p, size) for p in found]) for size in (ngram_size, lambda _: NGRAM))
    y_end = np.array([p.logp["y_given_x"][len(p.ids["y"]) :].astype(np.float64).sum() for p in found])
    scores = likelihood_scores(logp, **counts, novel=novel, y_end=y_end)
    tokens = [token_scores(p.ids["x"].tolist(), p.ids["y"].tolist()) for p in found]
    scores |= {name: np.array([row[name] for row in tokens]) for name in tokens[0]}
    scores |= bank_scores(cases, passes, layer=-1)
    out = {name: -scores[name] if lower_is_better(name) else scores[name] for name in SCORES}
    root = 2 * np.sqrt(counts["tokens_x"] + counts["tokens_y"])
    out["mutual, common root"] = (logp[:, 0] - logp[:, 1] + logp[:, 2] - logp[:, 3]) / root
    six = likelihood_scores(logp, **counts, novel=fixed, y_end=y_end)
    out["mutual_novel, 6-grams only"] = six["mutual_novel"]
    out["ifd as published"] = np.where(scores["ifd"] < 1, scores["ifd"], -scores["ifd"])
    out["refusal"] = np.array([is_refusal(case.pair.response) for case in cases], np.float64)
    out["length of the response"] = counts["tokens_y"].astype(np.float64)
    return out


def _novel(passes: Passes, size: Callable[[list[int]], int]) -> tuple[float, float]:
    x, y = (passes.ids[side].tolist() for side in "xy")
    logp, n = passes.logp, size(x)
    ratio_y, ratio_x = (logp[f"{a}_given_{b}"].astype(np.float64) - logp[a] for a, b in ("yx", "xy"))
    return novel_sum(ratio_y, y, x, n), novel_sum(ratio_x, x, y, n)


def bank_scores(
    cases: Sequence[Case],
    passes: Mapping[str, Passes],
    *,
    layer: int,
    transform: Callable[[NDArray[np.float32]], Callable[[NDArray[np.float32]], NDArray[np.float32]]] | None = None,
) -> dict[str, Floats]:
    """Return `semantic` and `structural` of every case, with the good pairs of the other folds as the bank.

    Args:
        cases: the n cases.
        passes: the passes by pair id.
        layer: position among the cached layers.
        transform: from the bank's states of one side, a function of states that replaces standardising.
    """
    fold = np.array([case.base % FOLDS for case in cases])
    good = np.array([case.kind == "good" for case in cases])
    out = {name: np.full(len(cases), np.nan) for name in ("semantic", "structural")}
    states = _states(cases, passes, layer)
    for number in range(FOLDS):
        members, rows = np.flatnonzero(good & (fold != number)), np.flatnonzero(fold == number)
        bank, pairs = (PairStates(*(array[index] for array in states)) for index in (members, rows))
        if transform:
            maps = [transform(side) for side in (bank.embed_x, bank.embed_y)]
            bank, pairs = (p._replace(embed_x=maps[0](p.embed_x), embed_y=maps[1](p.embed_y)) for p in (bank, pairs))
        scores = Bank(bank, TEMPERATURE, standardised=transform is None).score(pairs)
        for name, values in scores._asdict().items():
            out[name][rows] = values
    return out


def _states(cases: Sequence[Case], passes: Mapping[str, Passes], layer: int) -> PairStates:
    found = [passes[case.pair.id] for case in cases]
    embed_x, embed_y = (np.stack([p.states[side][layer] for p in found]) for side in "xy")
    text_x, text_y = (np.array([zlib.crc32(p.ids[side].tobytes()) for p in found]) for side in "xy")
    return PairStates(embed_x, embed_y, text_x, text_y)


class Part:
    """The cases of one part of the benchmark, with their values.

    Args:
        cases: all cases.
        values: float64[n] by score, higher is better.
        part: the name of the part.
    """

    def __init__(self, cases: Sequence[Case], values: Mapping[str, Floats], part: str) -> None:
        self.values = values
        self.at: dict[str, dict[int, int]] = {}  # position of a case by kind and base row
        for place, case in enumerate(cases):
            if case.part == part:
                self.at.setdefault(case.kind, {})[case.base] = place
        self.kinds = [kind for kind in self.at if kind not in ("good", *GOOD_OF.values())]

    def auc(self, score: str, kind: str, minus: str | None = None) -> dict[str, float]:
        """Return the AUC of good pairs against those of a kind, or its difference to another score's.

        Args:
            score: a score.
            kind: a kind of corrupted pairs.
            minus: another score. Default: none.

        Returns:
            value, low and high (95% of RESAMPLINGS resamplings of the base rows), and n base rows.
        """
        good, bad = self.at[GOOD_OF.get(kind, "good")], self.at[kind]
        bases = [base for base in bad if base in good]
        places = np.array([[good[base] for base in bases], [bad[base] for base in bases]])

        wins = _wins(*self.values[score][places])
        if minus:
            wins -= _wins(*self.values[minus][places])
        n = len(bases)
        times_drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLINGS)
        low, high = np.quantile(((times_drawn @ wins) * times_drawn).sum(1) / n**2, (0.025, 0.975))
        return {"value": float(wins.mean()), "low": float(low), "high": float(high), "n": n}

    def removed(self, kind: str) -> dict[str, float]:
        """Return the fraction of a kind that the recommended filter removes, with its interval."""
        rows = np.array(list(self.at[kind].values()))
        met = [limit.met(self._column(limit.column)[rows]) for limit in RECOMMENDED]
        return _fraction(~np.logical_and.reduce(met))

    def flagged(self, flag: str) -> dict[str, Any]:
        """Return recall by kind, the fraction of good pairs that are flagged, and precision in this part.

        Args:
            flag: the name of a flag.
        """
        (rule,) = (f for f in FLAGS if f.name == flag)
        is_set = {
            kind: np.array([rule.is_set(self._row(place)) for place in places.values()])
            for kind, places in self.at.items()
        }
        recall = {kind: _fraction(is_set[kind]) for kind in FLAG_OF[flag] if kind in is_set}
        hits = sum(int(is_set[kind].sum()) for kind in FLAG_OF[flag] if kind in is_set)
        total = sum(int(values.sum()) for values in is_set.values())
        good = np.concatenate([is_set[kind] for kind in ("good", "good_input") if kind in is_set])
        return {"recall": recall, "good": _fraction(good), "precision": hits / max(total, 1), "flagged": total}

    def _column(self, name: str) -> Floats:
        return -self.values[name] if COLUMNS[name].better == "lower" else self.values[name]

    def _row(self, place: int) -> dict[str, float]:
        return {name: float(self._column(name)[place]) for name in ("echo", "nll_end", "refusal")}


def _wins(good: Floats, bad: Floats) -> Floats:
    """Return float64[n, n], 1 where a good pair is above a bad one, 1/2 where they are equal; its mean is the AUC."""
    return (good[:, None] > bad) + 0.5 * (good[:, None] == bad)


def _fraction(hits: NDArray[np.bool_]) -> dict[str, float]:
    """Return a fraction with its 95% interval (Wilson)."""
    n, p, z = len(hits), float(hits.mean()), 1.96
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return {"value": p, "low": float(low), "high": float(high), "n": n}
