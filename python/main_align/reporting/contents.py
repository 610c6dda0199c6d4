"""contents: everything on the page, as the values of its template and the data of its script."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.pairs import STATUSES
from ..data.sources.source import format_reasons
from ..errors import UserError
from ..filtering.rules import best_first
from ..scoring.columns import COLUMNS, PANELS, SCORES
from .duplicates import KINDS, DuplicateGroups, TextHashes, duplicate_groups
from .files import ScoreFiles
from .groups import FieldGroups, largest_groups, length_grouping
from .joint import JOINT, JointRows
from .shown import SAMPLE, SEED, ShownRow, clipped, collect, sample
from .simulation import SHARES, Grouping, Simulation, simulate
from .statistics import QUANTILES, histogram, quantiles, rank_correlation

QUADRANT = ("pmi_forward", "pmi_reverse")
FACTS = ("model", "revision", "heads", "dtype", "max_length", "truncate")
LENGTHS = ("tokens_x", "tokens_y")
REASON = 300  # characters of a reason or of a setting
PLACES = 6  # rows of a group of duplicates that are named

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Contents:
    """The content of a page.

    Args:
        values: the values of the template.
        data: the data of the script, without texts.
        rows: the rows whose texts are shown.
    """

    values: dict[str, Any]
    data: dict[str, Any]
    rows: list[ShownRow]


def contents(files: ScoreFiles, group_by: str | None, source: str | None, *, text: bool) -> Contents:
    """Compute all numbers of the page, and read the rows that it shows.

    Args:
        files: the score files.
        group_by: a field of the data to group by, or None.
        source: the value of --input, or None.
        text: show ids, reasons and texts.

    Raises:
        UserError: no row has a score, or no row has the field `group_by`.
    """
    columns = files.table.columns
    groupings, hashes = _read_input(files, group_by)
    scores = {name: columns[name] for name in SCORES if name in columns and np.isfinite(columns[name]).any()}
    if not scores:
        raise UserError(f"{files.path}: no row has a score. {format_reasons(files.table.reasons)}")
    simulations = {
        name: simulate(values, COLUMNS[name].better == "lower", groupings) for name, values in scores.items()
    }
    duplicates = duplicate_groups(hashes) if hashes else []
    drawn = sample(list(simulations.values()))
    firsts = np.array([rows[0] for kind in duplicates for rows in kind.largest], dtype=np.int64)
    numbers = np.unique(np.concatenate([drawn, firsts, *(found.extremes for found in simulations.values())]))
    shown = collect(files, numbers, text=text)
    by_row = dict(zip(numbers.tolist(), shown, strict=True))
    joint = JointRows.draw(files.table.rows)
    preset = joint.preset_data(files.table, files.lengths, groupings, numbers)
    values = {
        "name": files.path.name,
        "rows": files.table.rows,
        "files": len(files.files),
        "scored_with": _scored_with(files.manifest),
        "settings": _settings(files.manifest),
        "statuses": _statuses(files, text),
        "scores": [COLUMNS[name] for name in scores],
        "quantile_names": [f"{quantile:.0%}" for quantile in QUANTILES],
        "quantiles": {name: quantiles(column[np.isfinite(column)]) for name, column in scores.items()},
        "correlations": {name: _with_lengths(column, columns) for name, column in scores.items()},
        "lengths": {name: COLUMNS[name].definition for name in LENGTHS},
        "groups": [_medians(grouping, columns) for grouping in groupings[1:]],
        "medians_of": [name for name in PANELS if name in scores],
        "definitions": list(COLUMNS.values()),
        "duplicates": [_duplicates(kind, files, by_row) for kind in duplicates],
        "has_input": bool(files.joins),
        "text": text,
        "sampled": len(drawn) if len(drawn) == SAMPLE else 0,
        "seed": SEED,
        "preset": preset and preset["conditions"],
        "joint": 0 if joint.is_whole else JOINT,
    }
    data = {
        "rows": files.table.rows,
        "sampled": bool(len(drawn) == SAMPLE),
        "shareable": len(files.files) == 1,
        "command": _command(files, source),
        "shares": SHARES,
        "groupings": [{"title": g.title, "labels": g.labels, "sizes": g.sizes} for g in groupings],
        "joint": joint.data(groupings),
        "preset": preset,
        "scores": [_score(name, scores[name], simulations[name], joint, numbers) for name in scores],
        "quadrant": _quadrant(scores, numbers),
        "drawn": np.searchsorted(numbers, drawn).tolist(),
        "tokens": [_whole(columns.get(name), numbers) for name in LENGTHS],
    }
    return Contents(values, data, shown)


def _read_input(files: ScoreFiles, group_by: str | None) -> tuple[list[Grouping], TextHashes | None]:
    rows, columns = files.table.rows, files.table.columns
    groupings = [Grouping("all rows", ["all rows"], np.zeros(rows, dtype=np.int64))]
    groupings.append(length_grouping(columns.get("tokens_y", np.full(rows, np.nan))))
    if len(files.files) > 1:
        names = [file.name for file in files.files]
        groupings.append(largest_groups("file", names, np.repeat(np.arange(len(names)), files.lengths), "files"))
    if not files.joins:
        return groupings, None
    hashes, groups = TextHashes(), FieldGroups(group_by) if group_by else None
    for pair, record in files.joined():
        hashes.add(pair)
        if groups:
            groups.add(record)
    return [*groupings, *([groups.grouping()] if groups else [])], hashes


def _scored_with(manifest: Mapping[str, Any] | None) -> dict[str, str]:
    if manifest is None:
        return {}
    scorer, bank = manifest["settings"].get("scorer", {}), manifest.get("bank", {})
    entries = {"data": manifest.get("source")} | {name: scorer.get(name) for name in FACTS}
    if bank:
        entries["bank"] = f"{bank['pairs']:,} of {bank['of_scored']:,} scored pairs"
    entries |= {"repeated ids": manifest.get("repeated_ids") or None, "written": manifest.get("written")}
    return {name.replace("_", " "): _plain(value) for name, value in entries.items() if value is not None}


def _settings(manifest: Mapping[str, Any] | None) -> dict[str, str]:
    """Return every setting of the scorer, and the versions."""
    if manifest is None:
        return {}
    entries = manifest["settings"].get("scorer", {}) | {"versions": manifest.get("versions")}
    return {name.replace("_", " "): _plain(value) for name, value in entries.items() if value is not None}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {inner}" for name, inner in value.items() if inner is not None)
    return clipped(str(value), REASON)


def _statuses(files: ScoreFiles, text: bool) -> list[tuple[str, int, str, str]]:
    table = files.table
    reasons = {status: clipped(reason, REASON) if text else "" for status, reason in table.reasons.items()}
    names = [*(name for name in STATUSES if name in table.counts), *(set(table.counts) - set(STATUSES))]
    return [(name, table.counts[name], STATUSES.get(name, ""), reasons.get(name, "")) for name in names]


def _with_lengths(column: NDArray[np.float64], columns: Mapping[str, NDArray[np.float64]]) -> list[float | None]:
    return [rank_correlation(column, columns[name]) if name in columns else None for name in LENGTHS]


def _medians(grouping: Grouping, columns: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the medians of the plotted scores in each group."""
    order = np.argsort(grouping.codes, kind="stable")
    parts = np.split(order, np.cumsum(grouping.sizes)[:-1])
    medians = []
    for rows in parts:
        finite = {name: columns[name][rows] for name in PANELS if name in columns}
        finite = {name: values[np.isfinite(values)] for name, values in finite.items()}
        medians.append({name: float(np.median(values)) if len(values) else None for name, values in finite.items()})
    rows_of = list(zip(grouping.labels, grouping.sizes, medians, strict=True))
    return {"title": grouping.title, "rows": rows_of}


def _duplicates(kind: DuplicateGroups, files: ScoreFiles, shown: Mapping[int, ShownRow]) -> dict[str, Any]:
    largest = [
        {
            "size": len(rows),
            "places": ", ".join(files.label(row) for row in rows[:PLACES]) + (", …" if len(rows) > PLACES else ""),
            "texts": [
                clipped(text, REASON)
                for side, text in (("instruction", shown[rows[0]].instruction), ("response", shown[rows[0]].response))
                if kind.kind in ("pair", side)
            ],
        }
        for rows in kind.largest
    ]
    return {"title": KINDS[kind.kind], "groups": kind.groups, "extra": kind.extra, "largest": largest}


def _command(files: ScoreFiles, source: str | None) -> tuple[str, str]:
    """Return the parts of the filter's command before and after the options of its rule."""
    after = f" --input {shlex.quote(source)}" if source else ""
    if len(files.files) == 1:
        return f"main-align filter {shlex.quote(str(files.files[0]))} -o kept.jsonl ", after
    folder = shlex.quote(str(files.path))
    each = " ".join(f"{folder}/*{ending}" for ending in sorted({file.suffix for file in files.files}))
    return (
        f'mkdir -p kept; for scores in {each}; do main-align filter "$scores" -o "kept/$(basename "$scores")" ',
        f"{after}; done",
    )


def _score(
    name: str, values: NDArray[np.float64], found: Simulation, joint: JointRows, numbers: Integers
) -> dict[str, Any]:
    column, finite = COLUMNS[name], values[np.isfinite(values)]
    return {
        "name": name,
        "unit": f"{column.panel}, " if column.panel else "",
        "definition": column.definition,
        "better": column.better,
        "scored": int((found.share_of >= 0).sum()),
        "histogram": histogram(finite),
        "quantiles": quantiles(finite),
        "cuts": found.cuts,
        "limits": found.limits,
        "shares": found.shares,
        "cells": found.cells,
        "joint": joint.score_data(values, column.better == "lower", found, numbers),
        "ranked": _ranked(values[numbers], column.better == "lower"),
        "values": [_rounded(value) for value in values[numbers]],
        "share_of": found.share_of[numbers].tolist(),
        "cell_of": found.cell_of[numbers].tolist(),
    }


def _ranked(values: NDArray[np.float64], lower_is_better: bool) -> list[int]:
    """Return the shown rows that have the score, in the filter's order. Their rounded values may be equal."""
    rows = np.flatnonzero(~np.isnan(values))
    ranked: list[int] = rows[best_first(values[rows], lower_is_better)].tolist()
    return ranked


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _whole(column: NDArray[np.float64] | None, numbers: Integers) -> Sequence[int | None]:
    if column is None:
        return [None] * len(numbers)
    return [int(value) if np.isfinite(value) else None for value in column[numbers]]


def _quadrant(scores: Mapping[str, NDArray[np.float64]], numbers: Integers) -> dict[str, Any] | None:
    """Return the axes of the scatter plot with their medians, the rows of each quadrant, and that of each shown row.

    The quadrants are 0: both high, 1: forward low and reverse high, 2: forward high and reverse low, 3: both low.
    """
    if not all(name in scores for name in QUADRANT):
        return None
    x, y = (scores[name] for name in QUADRANT)
    both = np.isfinite(x) & np.isfinite(y)
    if not both.any():
        return None
    across, up = (float(np.median(side[both])) for side in (x, y))
    quadrant = np.where(both, (x < across) + 2 * (y < up), -1)
    return {
        "x": QUADRANT[0],
        "y": QUADRANT[1],
        "middle": [across, up],
        "counts": np.bincount(quadrant[both], minlength=4).tolist(),
        "of": quadrant[numbers].tolist(),
    }
