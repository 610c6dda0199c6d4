"""sample, collect, clipped, ShownRow: the rows whose numbers and texts the page shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .files import ScoreFiles
from .simulation import Simulation

SAMPLE = 1000  # random rows; a smaller data set is shown whole
SEED = 0

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShownRow:
    """The texts of one row.

    Args:
        label: its place in the score file.
        id: its id.
        status: its status.
        flags: its flags, separated by commas; empty if the file has none.
        instruction: its instruction.
        response: its response.
    """

    label: str
    id: str = ""
    status: str = ""
    flags: str = ""
    instruction: str = ""
    response: str = ""


def sample(simulations: list[Simulation]) -> Integers:
    """Draw rows that have a score, in random order, with the seed SEED."""
    scored = np.flatnonzero(np.any([simulation.share_of >= 0 for simulation in simulations], axis=0))
    return np.random.default_rng(SEED).permutation(scored)[:SAMPLE]


def collect(files: ScoreFiles, rows: Integers, *, text: bool) -> list[ShownRow]:
    """Read rows of the score files and of their data.

    Args:
        files: the score files.
        rows: int64[n], ascending.
        text: keep ids and texts; without it only the place, the status and the flags.
    """
    shown = []
    for number, (pair, score) in zip(rows.tolist(), files.pick(rows.tolist()), strict=True):
        row = ShownRow(files.label(number), status=str(score["status"]), flags=str(score.get("flags") or ""))
        if text and pair is not None:
            row = ShownRow(row.label, str(score["id"]), row.status, row.flags, pair.instruction, pair.response)
        shown.append(row)
    return shown


def clipped(text: str, length: int) -> str:
    """Return at most `length` characters of a text, the last of them an ellipsis if some are missing."""
    return text if len(text) <= length else text[: length - 1] + "…"
