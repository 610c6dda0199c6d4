"""What the commands do once their options are read: call the library, show the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data.formats.record import Fields
from ..data.labels import read_aligned
from ..data.pairs import SCORED
from ..data.read import check_fields, check_readable, open_source
from ..data.write import check_ending
from ..errors import UserError
from ..filtering.filter import filter_scores
from ..plots import check_plot, plot_scores
from ..scoring.resume import check_partial, partial_folder
from ..scoring.score_file import read_columns
from .progress_bar import Display, clock
from .summary import filter_summary, rounds_table, score_summary, status_table


def run_score(
    source: str,
    out: Path,
    *,
    scorer: dict[str, Any],
    fields: Fields,
    split: str | None,
    config: str | None,
    window: int,
    restart: bool,
    plot: Path | None,
) -> None:
    """`main-align score`. Raises UserError before the model is loaded where it can."""
    check_ending(out)
    check_partial(out)
    check_fields(fields)
    if plot:
        check_plot(plot)
    opened = open_source(source, split=split, config=config)
    notes = check_readable(opened, fields)
    with Display() as display:
        if notes.unused:
            display.say(notes.sentence())
        display.say(f"loading {scorer['model']} ...")
        _hush()
        command = {"input": source, "output": str(out), **scorer}
        from ..scoring.job import score_file
        from ..scoring.scorer import Scorer

        try:
            manifest = score_file(
                Scorer(**scorer),
                opened,
                out,
                fields=fields,
                split=split,
                config=config,
                window=window,
                restart=restart,
                command=command,
                progress=display,
            )
        except KeyboardInterrupt:
            if partial_folder(out).exists():
                display.say(f"What is done is safe in {partial_folder(out)}; run again to resume.")
            raise
    if not display.used:
        display.say(f"{out} was already complete for this input and model; --restart scores again")
    _say_reasons(display, manifest["counts"], manifest["first_reasons"])
    if not any(manifest["counts"].get(status) for status in SCORED):
        raise UserError(f"{out}: no row could be scored; each row of it has its reason")
    columns = read_columns(out, "mutual").columns
    console = Console()
    console.print(status_table(manifest["counts"]), "", score_summary(columns), "")
    console.print(_outcome(out, manifest), highlight=False, markup=False, soft_wrap=True)
    if plot:
        title = f"{Path(source).name} scored with {manifest['settings']['scorer']['model']}"
        plot_scores(plot, columns, title=title, aligned=read_aligned(opened))
        console.print(f"histograms: {plot}", highlight=False, markup=False)


def _say_reasons(display: Display, counts: Mapping[str, int], reasons: Mapping[str, str]) -> None:
    """The first reason of each status but ok."""
    for status, reason in reasons.items():
        display.say(f"{status}: {counts[status]:,} rows, the first: {reason}")


def _hush() -> None:
    """Our progress display is the only one."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _outcome(out: Path, manifest: dict[str, Any]) -> str:
    speed = manifest["throughput"]
    earlier = speed["pairs_from_earlier_runs"]
    resumed = f", {earlier:,} pairs were there from an earlier run" if earlier else ""
    return (
        f"{manifest['rows']:,} rows in {clock(speed['seconds'])} "
        f"({speed['pairs_per_second']:,.1f} pairs/s, {speed['tokens_per_second']:,.0f} tokens/s"
        f"{resumed})\nscores: {out}"
    )


def run_filter(
    scores: Path,
    out: Path,
    by: str,
    limits: dict[str, Any],
    *,
    source: str | None,
    scores_only: bool,
    plot: Path | None,
) -> None:
    """`main-align filter`."""
    if plot:
        check_plot(plot)
    done = filter_scores(scores, out, by=by, **limits, input=source, scores_only=scores_only)
    _say_reasons(Display(), done.table.counts, done.table.reasons)
    console = Console()
    console.print(filter_summary(done), "")
    console.print(f"kept rows: {out}", highlight=False, markup=False)
    if plot:
        threshold = (done.by, done.threshold) if done.threshold is not None else None
        title = f"{scores.name}, {int(done.kept.sum()):,} rows kept by {done.by}"
        plot_scores(plot, done.table.columns, title=title, threshold=threshold, aligned=done.aligned)
        console.print(f"histograms: {plot}", highlight=False, markup=False)


def run_train(config: Path | None, given: dict[str, Any], assignments: list[str], *, restart: bool) -> None:
    """`main-align train`. Raises UserError before anything is trained where it can."""
    from ..loop.config_file import read_config

    settings = read_config(config, given, assignments)
    with Display() as display:
        _hush()
        from datasets import disable_progress_bars

        disable_progress_bars()
        from ..loop import MutualAlignmentLoop

        loop = MutualAlignmentLoop(settings, restart=restart, say=display, tell=display.say)
        try:
            report = loop.run()
        except KeyboardInterrupt:
            display.say(f"Finished stages are safe in {settings.output_dir}; run again to resume.")
            raise
    if loop.processes.first:
        console = Console()
        console.print(rounds_table(report["rounds"]), "")
        models = "\n".join(f"{direction} model: {path}" for direction, path in report["models"].items())
        kept = f"\nkept pairs: {report['kept']}" if "kept" in report else ""
        report_path = Path(settings.output_dir) / "report.json"
        console.print(f"{models}{kept}\nreport: {report_path}", highlight=False, markup=False, soft_wrap=True)
    loop.processes.leave()
