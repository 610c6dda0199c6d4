"""`main-align filter`: keeps the best rows of a scored data set, in its own fields.

Everything streams but the score columns (8 bytes a value); see joining.py for how a score finds its
row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.fields import Fields
from ..data.pairs import SCORED
from ..data.read import open_source
from ..data.sources.source import Source, format_reasons
from ..data.sources.stdin import STDIN
from ..data.write import check_output
from ..errors import UserError
from ..scoring.columns import ALIASES, lower_is_better
from ..scoring.manifest import manifest_path, read_manifest
from ..scoring.score_file import ScoreTable, read_columns
from .join import Join, write_kept, write_kept_scores
from .rules import Rule, select


@dataclass(frozen=True, slots=True)
class Filtered:
    """What a filter did.

    `kept` bool[N]; `threshold` the worst value kept, None where nothing was; `unscored` the rows
    that had no score to be judged by, counted by status; `aligned` the input's own true/false field
    of that name, float64[N] with NaN where a row has none, or None where no row has it.
    """

    by: str
    table: ScoreTable
    kept: NDArray[np.bool_]
    threshold: float | None
    unscored: dict[str, int]
    aligned: NDArray[np.float64] | None


def filter_scores(
    scores: str | Path,
    out: str | Path,
    *,
    by: str = "mutual",
    keep: float | None = None,
    top: int | None = None,
    min: float | None = None,
    max: float | None = None,
    input: str | Path | None = None,
    scores_only: bool = False,
) -> Filtered:
    """Write the best rows of a scored data set to `out` (.parquet, .jsonl or .csv), in input order.

    Args:
        scores: the output of `score_file`.
        by: a column, or forward_nll (nll_y_given_x) or reverse_nll (nll_x_given_y). Lower is better
            for the nll columns, ifd, r_ifd, duality_gap and copy_overlap, higher for all others.
        keep: the best share of the scored rows, of those within `min` and `max` where these are given.
        top: the best so many of these rows; not together with `keep`.
        min: lowest value kept, of any column.
        max: highest value kept, of any column. IFD as published is min and max=1.
        input: the scored data set; found through the manifest beside `scores` by default.
        scores_only: write the rows of `scores` instead of those of the input.

    Raises:
        UserError: a rule that makes no sense, files that are missing, or ids that do not match.
    """
    scores, out, by = Path(scores), Path(out), ALIASES.get(by, by)
    rule = Rule(keep, top, min, max)
    rule.check()
    check_output(out)
    _refuse_overwriting(out, scores, input)
    table = read_columns(scores, by)
    if np.isnan(table.columns[by]).all():
        raise UserError(f"{scores}: no row has a value of {by}. {format_reasons(table.reasons)}")
    kept = select(table.columns[by], by, rule)
    aligned = None
    if scores_only:
        write_kept_scores(scores, out, kept)
    else:
        source, fields = _find_input(scores, out, input)
        aligned = write_kept(Join(source, fields, scores), out, kept)
    unscored = {name: n for name, n in sorted(table.counts.items()) if name not in SCORED}
    return Filtered(by, table, kept, _worst(table.columns[by][kept], by), unscored, aligned)


def _worst(values: NDArray[np.float64], by: str) -> float | None:
    if not len(values):
        return None
    return float(values.max() if lower_is_better(by) else values.min())


def _refuse_overwriting(out: Path, *inputs: str | Path | None) -> None:
    for path in inputs:
        if path is not None and out.exists() and Path(path).exists() and out.samefile(path):
            raise UserError(f"{out} would overwrite its own input; give another -o")


def _find_input(scores: Path, out: Path, given: str | Path | None) -> tuple[Source, Fields]:
    manifest = read_manifest(scores)
    reading = manifest["settings"]["reading"] if manifest else {"fields": {}}
    fields, place = Fields(**reading["fields"]), {name: reading.get(name) for name in ("split", "config")}
    if given is not None:
        return open_source(given, **place), fields
    if manifest is None:
        raise UserError(
            f"{manifest_path(scores)} is missing, so the scored data set is not known; "
            "name it with --input, or write the score rows alone with --scores-only"
        )
    path = manifest["source_path"] or manifest["source"]
    if path == STDIN:
        raise UserError(f"{scores} was scored from standard input; name the data with --input, or say --scores-only")
    try:
        source = open_source(path, **place)
    except UserError as error:
        raise UserError(f"{error} It was scored from there; name its new place with --input.") from None
    _refuse_overwriting(out, path)
    if source.digest() != manifest["settings"]["input"]["digest"]:
        raise UserError(
            f"{path} has changed since it was scored; score it again, or name the unchanged copy with --input"
        )
    return source, fields
