"""Detection of shuffled responses by each score, without training.

A fraction of the responses of a training set is exchanged. The corrupted set is scored, also as the semantic bank, and
every criterion gives each pair a goodness. `shuffled` pairs exchange their responses at random; `hard` pairs get the
response of the nearest instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .measures import Floats, ModelOutputs, auc, cosine_matrix, semantic_matrix

KINDS = ("shuffled", "hard")

CRITERIA = {  # score: +1 if higher is better, -1 if lower is better
    "mutual": 1,
    "pmi_forward": 1,
    "pmi_reverse": 1,
    "nll_y_given_x": -1,
    "ifd": -1,
    "r_ifd": -1,
    "semantic": 1,
}
FORWARD_SCALED = "forward_scaled"  # sqrt(|y|) pmi_forward: the scale of `mutual` without the reverse direction
ENCODER = "encoder"  # cosine of both sides from the sentence encoder
PUBLISHED_IFD = "ifd_published"  # the selection rule of the IFD paper: the highest below 1


def replace_rows(clean: ModelOutputs, swapped: ModelOutputs, rows: Sequence[int]) -> ModelOutputs:
    """Return `clean` with the given rows replaced by `swapped`, which has one entry per row."""
    arrays = {}
    for name in ("logp", "tokens_x", "tokens_y", "embed_x", "embed_y"):
        array = getattr(clean, name).copy()
        array[list(rows)] = getattr(swapped, name)
        arrays[name] = array
    return replace(clean, **arrays)


def goodness(outputs: ModelOutputs, encoder_cosine: Floats | None) -> dict[str, Floats]:
    """Return float64[n] per criterion, higher is better. encoder_cosine: float64[n] from the sentence encoder."""
    cosines = cosine_matrix(outputs.embed_x, outputs.embed_y)
    scores = outputs.scores() | {"semantic": semantic_matrix(cosines).diagonal()}
    out = {name: sign * scores[name] for name, sign in CRITERIA.items()}
    out[FORWARD_SCALED] = scores["pmi_forward"] * np.sqrt(outputs.tokens_y)
    out[PUBLISHED_IFD] = np.where(scores["ifd"] < 1, scores["ifd"], -scores["ifd"])
    return out | ({} if encoder_cosine is None else {ENCODER: encoder_cosine})


def detection(good: Floats, corrupted: NDArray[np.bool_]) -> dict[str, float]:
    """Measure whether the lowest values of `good` are the corrupted pairs.

    `found` is both precision and recall, because as many pairs are flagged as were corrupted.
    """
    order = np.argsort(good, kind="stable")
    hit = corrupted[order]
    precision = hit.cumsum() / np.arange(1, len(hit) + 1)
    return {
        "auc": auc(list(good[~corrupted]), list(good[corrupted])),
        "found": float(hit[: corrupted.sum()].mean()),
        "average_precision": float(precision[hit].mean()),
    }


def corruption_record(
    outputs: ModelOutputs, encoder_cosine: Floats | None, corrupted: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return the record of one corruption: its pairs, each criterion's value of each pair, and the metrics."""
    good = goodness(outputs, encoder_cosine)
    return {
        "corrupted": np.flatnonzero(corrupted).tolist(),
        "goodness": {name: values.round(4).tolist() for name, values in good.items()},
        "metrics": {name: detection(values, corrupted) for name, values in good.items()},
    }


def keep_best(good: Sequence[float], dropped: float) -> list[int]:
    """Return the rows, in order, that remain after dropping the fraction `dropped` with the lowest goodness."""
    order = np.argsort(good, kind="stable")
    return sorted(order[round(dropped * len(order)) :].tolist())
