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
from main_align.scoring.ngrams import NGRAM, SHORTEST, copied, novel_sums
from main_align.scoring.other_script import is_other_script
from numpy.typing import NDArray

from .corruptions import Case
from .passes import LOGPS, Passes

Floats = NDArray[np.float64]

GOOD_OF = {
    "wrong_input": "good_input",
    "missing_input": "good_input",
    "swapped_system": "good_system",
    "swapped_system_scored": "good_system_scored",
}
"""the kind of good pairs that a kind is compared with; `good` if it is not listed"""
FLAG_OF = {
    "echo": ("echo", "echo_neighbour", "near_echo"),
    "cut_off": ("truncated",),
    "refusal": ("refusal",),
    "other_script": ("other_script",),
}
"""the kinds that each flag is meant to find"""
CUT_SENTENCE = "cut_sentence"
"""the truncated pairs whose response does not end like a sentence; half a response can be a complete answer"""
FOLDS = 3
TEMPERATURE = 0.07
RESAMPLINGS = 1000
ZEROED = "mutual_novel, copied 6-grams add 0"
TEXT_RULES = ("refusal", "other_script")
"""columns that are 0 or 1"""


def values_of(cases: Sequence[Case], passes: Mapping[str, Passes]) -> dict[str, Floats]:
    """Return every score of every case, float64[n]: higher is better, and rivals of the scores.

    Args:
        cases: the n cases.
        passes: the passes by pair id.
    """
    found = [passes[case.pair.id] for case in cases]
    logp = np.array([[p.logp[name].astype(np.float64).sum() for name in LOGPS] for p in found])
    counts = {f"tokens_{side}": np.array([len(p.logp[side]) for p in found]) for side in "xy"}
    novel, zeroed = (np.array([of(*_ratios(p)) for p in found]) for of in (novel_sums, _zeroed))
    y_end, y_end_alone = (
        np.array([p.logp[name][len(p.ids["y"]) :].astype(np.float64).sum() for p in found])
        for name in ("y_given_x", "y")
    )
    scores = likelihood_scores(logp, **counts, novel=novel, y_end=y_end)
    tokens = [token_scores(p.ids["x"].tolist(), p.ids["y"].tolist()) for p in found]
    scores |= {name: np.array([row[name] for row in tokens]) for name in tokens[0]}
    scores |= bank_scores(cases, passes, layer=-1)
    out = {name: -scores[name] if lower_is_better(name) else scores[name] for name in SCORES}
    root = 2 * np.sqrt(counts["tokens_x"] + counts["tokens_y"])
    out["mutual, common root"] = (logp[:, 0] - logp[:, 1] + logp[:, 2] - logp[:, 3]) / root
    out[ZEROED] = likelihood_scores(logp, **counts, novel=zeroed, y_end=y_end)["mutual_novel"]
    out["nll_end without x"], out["nll_end minus that without x"] = y_end_alone, y_end - y_end_alone
    out["ifd as published"] = np.where(scores["ifd"] < 1, scores["ifd"], -scores["ifd"])
    out["refusal"] = np.array([is_refusal(case.pair.response) for case in cases], np.float64)
    out["other_script"] = np.array(
        [is_other_script(case.pair.instruction, case.pair.response) for case in cases], np.float64
    )
    out["length of the response"] = counts["tokens_y"].astype(np.float64)
    return out


def _ratios(passes: Passes) -> tuple[Floats, Floats, list[int], list[int]]:
    """Return the arguments of `novel_sums`."""
    ratio_y, ratio_x = (passes.logp[f"{a}_given_{b}"].astype(np.float64) - passes.logp[a] for a, b in ("yx", "xy"))
    return ratio_y, ratio_x, passes.ids["y"].tolist(), passes.ids["x"].tolist()


def _zeroed(ratio_y: Floats, ratio_x: Floats, y: list[int], x: list[int]) -> tuple[float, float]:
    """Return the sums of both log-ratios without all tokens that lie in a shared 6-gram (or one of a shorter x)."""
    n = max(SHORTEST, min(NGRAM, len(x)))
    sides = ((ratio_y, copied(y, x, n)), (ratio_x, copied(x, y, n)))
    sum_y, sum_x = (float(ratio.sum() - ratio[: len(mask)][mask].sum()) for ratio, mask in sides)
    return sum_y, sum_x


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
                if case.kind == "truncated" and not _ends_sentence(case.pair.response):
                    self.at.setdefault(CUT_SENTENCE, {})[case.base] = place
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
            if kind != CUT_SENTENCE
        }
        recall = {kind: _fraction(is_set[kind]) for kind in FLAG_OF[flag] if kind in is_set}
        hits = sum(int(is_set[kind].sum()) for kind in FLAG_OF[flag] if kind in is_set)
        total = sum(int(values.sum()) for values in is_set.values())
        good = np.concatenate([is_set[kind] for kind in ("good", "good_input") if kind in is_set])
        return {"recall": recall, "good": _fraction(good), "precision": hits / max(total, 1), "flagged": total}

    def _column(self, name: str) -> Floats:
        return -self.values[name] if COLUMNS[name].better == "lower" else self.values[name]

    def _row(self, place: int) -> dict[str, float]:
        return {name: float(self._column(name)[place]) for name in ("echo", "nll_end", *TEXT_RULES)}


def _ends_sentence(text: str) -> bool:
    return text.rstrip("\"')]*\u201d").endswith((".", "!", "?"))


def _wins(good: Floats, bad: Floats) -> Floats:
    """Return float64[n, n], 1 where a good pair is above a bad one, 1/2 where they are equal; its mean is the AUC."""
    return (good[:, None] > bad) + 0.5 * (good[:, None] == bad)


def _fraction(hits: NDArray[np.bool_]) -> dict[str, float]:
    """Return a fraction with its 95% interval (Wilson)."""
    n, p, z = len(hits), float(hits.mean()), 1.96
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return {"value": p, "low": float(low), "high": float(high), "n": n}
