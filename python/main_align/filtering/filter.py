"""filter_scores, find_input, FilterResult: write the best rows of a scored data set, with their own fields.

Rows are streamed. Only the score columns are kept in memory, 8 bytes per value. join.py matches rows and scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..checks import check_types
from ..data.fields import Fields
from ..data.pairs import SCORED
from ..data.read import open_source
from ..data.sources.listing import refuse_overwriting
from ..data.sources.source import Source, format_reasons
from ..data.sources.stdin import STDIN
from ..data.write import check_output
from ..errors import UserError
from ..scoring.columns import ALIASES
from ..scoring.manifest import manifest_path, read_manifest
from ..scoring.score_file import ScoreTable, read_columns, score_parts
from .join import Join, write_kept, write_kept_scores
from .limits import RECOMMENDED, Limit, check_together, recommended_for
from .rules import Rule, resolve_lower_is_better, select


@dataclass(frozen=True, slots=True)
class FilterResult:
    """The result of a filter.

    Args:
        by: the column that the rows were selected by; None if only limits were given.
        lower_is_better: the better direction of the column, or None if it was not needed.
        table: the numeric columns of all rows, and the counts of their statuses.
        kept: bool[N], True for the rows that were kept.
        threshold: the worst value that was kept. None if no row was kept or the direction is unknown.
        unscored: the number of rows without a score, by status.
        failed: the number of scored rows that do not meet each limit. A row can fail several.
        aligned: float64[N], the input's boolean field `aligned`, NaN for a row without it. None if no row has it.
    """

    by: str | None
    lower_is_better: bool | None
    table: ScoreTable
    kept: NDArray[np.bool_]
    threshold: float | None
    unscored: dict[str, int]
    failed: dict[str, int]
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
    lower_is_better: bool | None = None,
    limits: Sequence[Limit] = (),
    recommended: bool = False,
    input: str | Path | None = None,
    scores_only: bool = False,
) -> FilterResult:
    """Write the best rows of a scored data set to `out` (.parquet, .jsonl or .csv), in input order.

    Args:
        scores: the score file, as written by `score_file`.
        out: the file to write.
        by: a numeric column, or forward_nll (nll_y_given_x), or reverse_nll (nll_x_given_y). Default: "mutual".
        keep: fraction of the scored rows between `min` and `max` to keep; excludes `top`. Default: all.
        top: number of rows between `min` and `max` to keep. Default: all.
        min: lowest value to keep. Default: no limit.
        max: highest value to keep. Default: no limit. IFD filtering as published is `min` and `max=1`.
        lower_is_better: the better direction. Default: the direction of the score; a column that is not a score has
            none, so `keep` and `top` need this argument.
        limits: conditions that every kept row meets; `keep` and `top` choose among the rows that meet them. Without
            `keep`, `top`, `min` and `max`, all of these are kept. Default: none.
        recommended: add the conditions RECOMMENDED, except those on a column without any value (`nll_end` of a model
            whose chat template has no end of turn). Default: False.
        input: the scored data set. Default: the path in the manifest of `scores`.
        scores_only: write rows of `scores` instead of rows of the input. Default: False.

    Returns:
        The rows that were kept and the threshold.

    Raises:
        UserError: the rule is invalid, the direction of the column is unknown, a file is missing, or the ids of the
            input and of the scores differ.
    """
    check_types(filter_scores, locals())
    scores, out, by = Path(scores), Path(out), ALIASES.get(by, by)
    rule, limits = (
        Rule(keep, top, min, max),
        [replace(limit, column=ALIASES.get(limit.column, limit.column)) for limit in limits],
    )
    has_rule = rule != Rule()
    if has_rule or not (limits or recommended):
        rule.check()
    for limit in limits:
        limit.check()
    preset = RECOMMENDED if recommended else ()
    check_together([Limit(by, min, max), *limits, *preset])
    check_output(out)
    refuse_overwriting(out, score_parts(scores) if scores.is_dir() else scores, input)
    names = [by] if has_rule else []
    table = read_columns(scores, *names, *(limit.column for limit in (*limits, *preset)))
    for name in (*names, *(limit.column for limit in limits)):
        if np.isnan(table.columns[name]).all():
            raise UserError(f"{scores}: no row has a value of {name}. {format_reasons(table.reasons)}")
    limits += recommended_for(table.columns) if recommended else []
    met = {str(limit): limit.met(table.columns[limit.column]) for limit in limits}
    kept = np.logical_and.reduce([np.ones(table.rows, bool), *met.values()])
    if has_rule:
        lower_is_better = resolve_lower_is_better(by, rule, lower_is_better)
        kept = select(np.where(kept, table.columns[by], np.nan), by, rule, lower_is_better)
    aligned = None
    if scores_only:
        manifest = read_manifest(scores)
        refuse_overwriting(out, manifest["source_path"] if manifest else None)
        write_kept_scores(scores, out, kept)
    else:
        source, fields = find_input(scores, input, otherwise="write only the scores with --scores-only")
        refuse_overwriting(out, source.paths())
        aligned = write_kept(Join(source, fields, scores), out, kept)
    unscored = {name: count for name, count in sorted(table.counts.items()) if name not in SCORED}
    threshold = _worst(table.columns[by][kept], lower_is_better) if has_rule else None
    scored = table.rows - sum(unscored.values())
    failed = {name: scored - int(is_met.sum()) for name, is_met in met.items()}
    column, order = (by, lower_is_better) if has_rule else (None, None)
    return FilterResult(column, order, table, kept, threshold, unscored, failed, aligned)


def _worst(values: NDArray[np.float64], lower_is_better: bool | None) -> float | None:
    if lower_is_better is None or not len(values):
        return None
    return float(values.max() if lower_is_better else values.min())


def find_input(scores: Path, explicit: str | Path | Source | None, *, otherwise: str) -> tuple[Source, Fields]:
    """Open the data set that a score file belongs to.

    Args:
        scores: the score file.
        explicit: the data set, or its path. None for the path in the manifest of `scores`.
        otherwise: what to do without the data, for messages.

    Returns:
        The data set, and the field names with which it was scored.

    Raises:
        UserError: the data set is unknown or missing, has changed since it was scored, or is another one with rows that
            have no ids.
    """
    manifest = read_manifest(scores)
    reading = manifest["settings"]["reading"] if manifest else {"fields": {}}
    fields, options = Fields(**reading["fields"]), {name: reading.get(name) for name in ("split", "config")}
    if explicit is not None:
        source = open_source(explicit, **options)
        if manifest is not None and source.digest() != manifest["settings"]["input"]["digest"]:
            _refuse_rows_without_ids(source, fields, scores)
        return source, fields
    if manifest is None:
        raise UserError(
            f"{manifest_path(scores)} is missing, so the scored data set is unknown; "
            f"name it with --input, or {otherwise}"
        )
    path = manifest["source_path"] or manifest["source"]
    if path == STDIN:
        raise UserError(f"{scores} was scored from standard input; name the data with --input, or {otherwise}")
    try:
        source = open_source(path, **options)
    except UserError as error:
        raise UserError(
            f"{error} The scored data set was there; name its new path with --input, or {otherwise}."
        ) from None
    if source.digest() != manifest["settings"]["input"]["digest"]:
        raise UserError(
            f"{path} has changed since it was scored; score it again, or name the unchanged copy with --input"
        )
    return source, fields


def _refuse_rows_without_ids(source: Source, fields: Fields, scores: Path) -> None:
    """Raise UserError unless every good row has an id of its own: by position alone, the rows of another file, or the
    same in another order, would get the scores of others."""
    for pair in source.pairs(fields):
        if pair.status == "ok" and not pair.own_id:
            raise UserError(
                f"{source.name} is not the data set that {scores} was scored from, and its {pair.unit} {pair.line} has "
                "no id to compare with that of its scores; name the unchanged data set, or score this one"
            )
