"""contrast: contrastive PMI, log p(y|x) - log mean_k p(y|x_k), over K other instructions of the bank.

It asks whether x explains y better than other instructions do, where pmi_forward asks whether x explains y better than
nothing does. Each x_k costs a pass, so it is tried on some base rows of the choosing part.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from main_align.scoring.scorer import Scorer
from numpy.typing import NDArray

from .corruptions import Case
from .detection import Part
from .passes import Passes

K = 4
KINDS = ("good", "neighbour")
RIVALS = ("pmi_forward", "mutual")
BLOCK = 32  # passes between two writes


def contrast(
    cases: Sequence[Case],
    passes: Mapping[str, Passes],
    values: Mapping[str, NDArray[np.float64]],
    scorer: Scorer,
    journal: Path,
    base_rows: int,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Return the AUC of contrastive PMI on the choosing part, and its differences to RIVALS.

    Args:
        cases: all cases.
        passes: their passes by pair id.
        values: the values of the scores of `cases`.
        scorer: the model.
        journal: JSON lines with log p(y|x_k) by the texts of both sides; passes that it has are not run again.
        base_rows: base rows without and with an input, at most.
        on_block: called after each block of passes with the number that are done and of all.
    """
    part = Part(cases, values, "choosing")
    places = [p for kind in KINDS for p in list(part.at.get(kind, {}).values())[:base_rows]]
    banks = {"random": _random, "nearest": _nearest}
    others = {name: pick([cases[p] for p in places], cases, passes) for name, pick in banks.items()}
    wanted = [
        (x, cases[place].pair.response)
        for picked in others.values()
        for place, xs in zip(places, picked, strict=True)
        for x in xs
    ]
    logp = _run(list(dict.fromkeys(wanted)), scorer, journal, on_block)
    tried = dict(values)
    for name, picked in others.items():
        column = np.full(len(cases), np.nan)
        for place, xs in zip(places, picked, strict=True):
            found = passes[cases[place].pair.id].logp["y_given_x"].astype(np.float64)
            rivals = np.array([logp[x, cases[place].pair.response] for x in xs])
            column[place] = (found.sum() - np.logaddexp.reduce(rivals) + np.log(len(xs))) / len(found)
        tried[name] = column
    at = set(places)
    small = Part([c for p, c in enumerate(cases) if p in at], {n: v[sorted(at)] for n, v in tried.items()}, "choosing")
    names = (*banks, *RIVALS)
    return {
        "passes": len(set(wanted)) / len(places),
        "auc": {name: {kind: small.auc(name, kind) for kind in small.kinds} for name in names},
        "differences": {
            f"{name} - {rival}": {kind: small.auc(name, kind, rival) for kind in small.kinds}
            for name in banks
            for rival in RIVALS
        },
    }


def _bank(case: Case, cases: Sequence[Case]) -> list[Case]:
    """Return the good pairs of other base rows that have another instruction."""
    return [
        c
        for c in cases
        if c.kind in ("good", "good_input")
        and c.part == case.part
        and c.base != case.base
        and c.pair.instruction != case.pair.instruction
    ]


def _random(chosen: Sequence[Case], cases: Sequence[Case], passes: Mapping[str, Passes]) -> list[list[str]]:
    """Return K random instructions for each case, the same for all kinds of a base row."""
    return [[c.pair.instruction for c in random.Random(case.base).sample(_bank(case, cases), K)] for case in chosen]


def _nearest(chosen: Sequence[Case], cases: Sequence[Case], passes: Mapping[str, Passes]) -> list[list[str]]:
    """Return the K instructions whose standardised mean states are nearest to those of each case."""
    out = []
    for case in chosen:
        bank = _bank(case, cases)
        states = np.stack([passes[c.pair.id].states["x"][-1] for c in (case, *bank)])
        states = (states - states[1:].mean(0)) / states[1:].std(0)
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        out.append([bank[place].pair.instruction for place in np.argsort(-(states[1:] @ states[0]))[:K]])
    return out


def _run(
    wanted: Sequence[tuple[str, str]], scorer: Scorer, journal: Path, on_block: Callable[[int, int], None]
) -> dict[tuple[str, str], float]:
    """Return log p(y|x) in nats of each (x, y)."""
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    logp = {(x, y): value for x, y, value in map(json.loads, lines)}
    todo = [texts for texts in wanted if texts not in logp]
    for start in range(0, len(todo), BLOCK):
        block = todo[start : start + BLOCK]
        encoded = scorer.encoder.encode(block, [()] * len(block))
        found, _ = scorer.forward([scorer.encoder.sequences(pair)[0] for pair in encoded])
        new = {texts: float(tokens.second.sum()) for texts, tokens in zip(block, found, strict=True)}
        with journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([*texts, value]) + "\n" for texts, value in new.items())
        logp |= new
        on_block(len(wanted) - len(todo) + start + len(block), len(wanted))
    return logp
