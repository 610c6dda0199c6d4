"""Tables of the loop study, written from its results file into docs/quality.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..records import machine_text
from ..report.tables import inserted
from ..report.tables import table as markdown_table
from .compare import Change
from .loop_statistics import CRITERIA, ENDPOINTS, GATE, better_default, change, correlations, endpoint, scored_rows
from .results import Run, load

MARKS = ("<!-- bench.quality.loop_study writes from here -->", "<!-- to here -->")
LABELS = {
    "random": "random half, written instructions",
    "oracle": "the same responses, hidden instructions",
    "seeds": "seeds alone",
}
HEADS = {"nll": "−log p(y given x)", "gap": "−log p(y given x') + log p(y given x)"}


def write(results: Path, page: Path) -> None:
    """Replace the marked part of a page by the tables.

    Args:
        results: the results file.
        page: the page.
    """
    head, runs = load(results)
    page.write_text(inserted(page.read_text(), MARKS, tables(head, runs)))


def tables(head: Mapping[str, Any], runs: list[Run]) -> str:
    """Return the tables of both parts as Markdown.

    Args:
        head: the facts that all runs share.
        runs: the runs of both parts.
    """
    loop = next(run for run in runs if run["part"] == "loop")
    arms = [run for run in runs if run["part"] == "arms"]
    sections = [_source(head, arms), _part_a(loop)]
    return "\n\n".join(sections + ([_part_b(arms)] if arms else []))


def _source(head: Mapping[str, Any], arms: list[Run]) -> str:
    how, of = head["settings"], head["machine"]
    commits = ", ".join(dict.fromkeys([of["commit"], *(str(run["commit"]) for run in arms)]))
    return (
        f"`{how['model']}`, float32, {how['seeds']} seed pairs, {how['hidden']} responses with a hidden instruction,"
        f" {how['held_out']} pairs held out; LoRA of rank {how['rank']} on the top {how['layers']} layers, learning"
        f" rate {how['learning_rate']:g}, {how['batch']} pairs per step. {machine_text(of)}, torch"
        f" {of['versions']['torch']}, transformers {of['versions']['transformers']}, commit {commits}."
    )


def _part_a(loop: Run) -> str:
    parts, rows = correlations(loop), scored_rows(loop)
    table = [["criterion", "rank correlation", "minus `forward_nll` (98.3%)", "kept half, cosine minus that of all"]]
    for name in CRITERIA:
        part = parts[name]
        low, high = part["interval"]
        difference = "–"
        if name != next(iter(CRITERIA)):
            difference = _signed(part["difference"], *part["interval_98.3"])
        table.append([f"`{name}`", f"{part['value']:.3f} [{low:.3f}, {high:.3f}]", difference, f"{part['kept']:+.3f}"])
    better = better_default(parts)
    verdict = f"By the rule, `{better}` replaces it." if better else "By the rule, no criterion replaces it."
    mean = statistics.fmean(loop["similarity"][row] for row in rows)
    return (
        f"**Part A: does a criterion know which written instruction is right?** {len(rows)} of {len(loop['ids'])} pairs"
        f" have a score; their mean cosine with the hidden instruction is {mean:.2f}. {verdict}\n\n"
        + markdown_table(table[0], table[1:])
    )


def _part_b(arms: list[Run]) -> str:
    names = [*GATE, *dict.fromkeys(run["experiment"] for run in arms if run["experiment"] not in GATE)]
    rows = []
    for arm in names:
        own = [run for run in arms if run["experiment"] == arm]
        cells = []
        for name in ENDPOINTS:
            values = [endpoint(run, name) for run in own]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4f}{spread}")
            cells.append("–" if arm == GATE[0] else _verdict(change(arms, arm, name)))
        tokens = statistics.fmean(run["facts"]["tokens"] for run in own)
        rows.append([LABELS.get(arm, f"half that `{arm}` keeps"), str(len(own)), f"{tokens:,.0f}", *cells])
    head = ["trained on the seeds and", "seeds", "tokens"]
    for name in ENDPOINTS:
        head += [HEADS[name], "minus random"]
    return (
        "**Part B: does a model gain from the right instructions?** Held out, nats per token; ▲ better and ▼ worse if"
        " the interval excludes zero and all seeds agree.\n\n" + markdown_table(head, rows)
    )


def _verdict(difference: Change | None) -> str:
    if difference is None:
        return "–"
    mark = {1: " ▲", -1: " ▼", 0: ""}[difference.verdict]
    return _signed(difference.mean, difference.low, difference.high, 4) + mark


def _signed(value: float, low: float, high: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
