"""Detection of shuffled responses by each score, without training.

A share of a training set's responses is exchanged, the set is scored as it is (the semantic bank is the corrupted set
itself), and every criterion gives each pair a goodness. `shuffled` pairs pass their responses round at random, `hard`
ones take the response of the nearest instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scoring import auc
from .measures import Floats, Reading, likeness, semantic

KINDS = ("shuffled", "hard")

CRITERIA = {  # score: the sign that makes it a goodness
    "mutual": 1,
    "pmi_forward": 1,
    "pmi_reverse": 1,
    "nll_y_given_x": -1,
    "ifd": -1,
    "r_ifd": -1,
    "semantic": 1,
}
FORWARD_SCALED = "forward_scaled"  # |y| pmi_forward / sqrt(|y|): what of `mutual` is its scale, not its other direction
ENCODER = "encoder"  # cosine of the two sides by the outside sentence encoder
PUBLISHED_IFD = "ifd_published"  # the selection rule of the IFD paper: the highest below 1


def merged(clean: Reading, swapped: Reading, rows: Sequence[int]) -> Reading:
    """`clean` with the pairs of `rows` read as in `swapped` (one entry a row). Of a swapped pair's embeddings only
    y's differs, and y's is its partner's: neither side has seen the other."""
    arrays = {}
    for name in ("logp", "tokens_x", "tokens_y", "embed_x", "embed_y"):
        array = getattr(clean, name).copy()
        array[list(rows)] = getattr(swapped, name)
        arrays[name] = array
    return replace(clean, **arrays)


def goodness(reading: Reading, alike: Floats | None) -> dict[str, Floats]:
    """float64[n] for each criterion, higher is better. `alike`: float64[n] cosines by the outside encoder."""
    scores = reading.scores() | {"semantic": semantic(likeness(reading.embed_x, reading.embed_y)).diagonal()}
    out = {name: sign * scores[name] for name, sign in CRITERIA.items()}
    out[FORWARD_SCALED] = scores["pmi_forward"] * np.sqrt(reading.tokens_y)
    out[PUBLISHED_IFD] = np.where(scores["ifd"] < 1, scores["ifd"], -scores["ifd"])
    return out | ({} if alike is None else {ENCODER: alike})


def detection(good: Floats, corrupted: NDArray[np.bool_]) -> dict[str, float]:
    """Measure whether the lowest values of `good` are the corrupted pairs.

    `found` is precision and recall at once: as many pairs are flagged as were corrupted.
    """
    order = np.argsort(good, kind="stable")
    hit = corrupted[order]
    precision = hit.cumsum() / np.arange(1, len(hit) + 1)
    return {
        "auc": auc(list(good[~corrupted]), list(good[corrupted])),
        "found": float(hit[: corrupted.sum()].mean()),
        "average_precision": float(precision[hit].mean()),
    }


def measured(reading: Reading, alike: Floats | None, corrupted: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the record of one corruption: its pairs, each criterion's value of each pair, and the metrics."""
    good = goodness(reading, alike)
    return {
        "corrupted": np.flatnonzero(corrupted).tolist(),
        "goodness": {name: values.round(4).tolist() for name, values in good.items()},
        "metrics": {name: detection(values, corrupted) for name, values in good.items()},
    }


def kept(good: Sequence[float], share: float) -> list[int]:
    """The rows that stay when the `share` with the lowest goodness is left out, in order."""
    order = np.argsort(good, kind="stable")
    return sorted(order[round(share * len(order)) :].tolist())
