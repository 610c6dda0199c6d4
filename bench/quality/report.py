"""Tables and plots of the study, written from its results file.

    python -m bench.quality.report bench/results/quality.json --into docs/quality.md

The tables replace the text between the two marks of the page; the plots are written next to the JSON.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..records import machine_text
from ..report.tables import inserted
from ..report.tables import table as markdown_table
from . import plots
from .compare import RESAMPLINGS, Table, differences
from .results import Run, load

MARKS = ("<!-- bench.quality.report writes from here -->", "<!-- to here -->")
NONE = "–"

LABELS = {
    "untrained": "untrained",
    "sft": "plain SFT",
    "sft_twice": "plain SFT, twice the epochs",
    "both": "forward + reverse",
    "semantic": "SFT + semantic",
    "intentional": "SFT + intentional",
    "duality": "SFT + duality",
    "structural": "SFT + structural",
    "full": "full framework",
    "semantic_strong": "SFT + 10 × semantic *",
    "full_light": "full, intentional / 10 *",
    "everything": "everything",
    "truth": "only aligned pairs (ground truth)",
    "random": "a random subset",
}
SCORES = {
    "forward_scaled": "`pmi_forward` × √tokens_y",
    "ifd_published": "`ifd`, highest below 1",
    "encoder": "cosine of the sentence encoder",
}
METRICS = {
    "nll_forward": "NLL y given x",
    "nll_reverse": "NLL x given y",
    "retrieval_xy": "retrieval x → y",
    "retrieval_yx": "retrieval y → x",
    "auc_mutual": "AUC `mutual`",
    "auc_pmi_forward": "AUC `pmi_forward`",
    "auc_semantic": "AUC `semantic`",
}
HEADS = {"retrieval_xy_head": "x → y through the heads", "retrieval_yx_head": "y → x through the heads"}


def make(results: Path, page: Path) -> None:
    """Write the plots next to `results` and the tables into `page`."""
    head, runs = load(results)
    sections = []
    by_part = {part: [run for run in runs if run["part"] == part] for part in ("terms", "cleaning", "kept")}
    writers = {"terms": _terms, "cleaning": _cleaning, "kept": _kept}
    order = list(LABELS)
    by_part["terms"].sort(
        key=lambda run: order.index(run["experiment"])
    )  # runs are in the order in which they were added
    for part, own in by_part.items():
        if own:
            sections.append(writers[part](own, results))
    insert(page, "\n\n".join([source(head, runs), *sections]))


def source(head: dict[str, Any], runs: Sequence[Run]) -> str:
    """Describe machine, settings and commits in one paragraph."""
    of, how = head["machine"], head["settings"]
    commits = ", ".join(dict.fromkeys(str(run["commit"]) for run in runs))
    return (
        f"`{how['model']}`, {how['train_pairs']} training pairs, {how['held_out_pairs']} held out,"
        f" {how['dropped_for_length']} dropped with more than {how['longest']} tokens; {how['epochs']:g} epochs,"
        f" {how['batch']} pairs per step, LoRA of rank {how['rank']} on the top {how['layers']} layers, learning"
        f" rate {how['learning_rate']:g}; neighbours by {how['neighbours']}. {machine_text(of)},"
        f" torch {of['versions']['torch']}, transformers {of['versions']['transformers']}, commit {commits}."
    )


def _terms(runs: Sequence[Run], results: Path) -> str:
    table = differences(runs, plain="sft", metrics=METRICS)
    plots.terms(table, LABELS, METRICS, results.with_name(f"{results.stem}_terms.png"))
    plain = statistics.median(run["facts"]["cpu_s"] for run in table.runs["sft"])
    tokens = table.runs["sft"][0]["facts"]["tokens"]
    absolute = [["experiment", *METRICS.values(), "tokens", "CPU time"]]
    for experiment, own in table.runs.items():
        facts = own[0].get("facts")
        cost = [NONE, NONE]
        if facts:
            seconds = statistics.median(run["facts"]["cpu_s"] for run in own)
            cost = [f"{facts['tokens'] / tokens:.2f}×", f"{seconds / plain:.2f}×"]
        absolute.append([_label(experiment), *(_mean(table.values(experiment, name)) for name in METRICS), *cost])
    head = [["experiment", *HEADS.values()]]
    for experiment, own in table.runs.items():
        if all(name in own[0]["metrics"] for name in HEADS):
            head.append([_label(experiment), *(_mean(table.values(experiment, name)) for name in HEADS)])
    seeds = len(table.runs["sft"])
    return "\n\n".join(
        [
            f"**Held out, mean ± standard deviation of {seeds} seeds**",
            _markdown(absolute),
            f"**Difference to plain SFT** of the same seed, mean, with the interval that contains 95% of {RESAMPLINGS}"
            " resamplings of the held-out pairs; ▲ better and ▼ worse if it excludes zero and all seeds agree",
            _markdown(_difference_rows(table)),
            "**Retrieval through the trained projection heads**",
            _markdown(head),
        ]
    )


def _difference_rows(table: Table) -> list[list[str]]:
    rows = [["experiment", *METRICS.values()]]
    for experiment in table.runs:
        if experiment not in (table.plain, "untrained"):
            rows.append([_label(experiment), *(_difference(table, experiment, name) for name in METRICS)])
    return rows


def _cleaning(runs: Sequence[Run], results: Path) -> str:
    plots.cleaning(runs, SCORES, results.with_name(f"{results.stem}_cleaning.png"))
    kinds = list(dict.fromkeys(run["experiment"] for run in runs))
    titles = {"auc": "AUC", "found": "found", "average_precision": "average precision"}
    rows = [["score", *(f"{kind}: {title}" for kind in kinds for title in titles.values())]]
    for name in runs[0]["metrics"]:
        cells = [
            _mean([run["metrics"][name][metric] for run in runs if run["experiment"] == kind])
            for kind in kinds
            for metric in titles
        ]
        rows.append([SCORES.get(name, f"`{name}`"), *cells])
    flagged = len(runs[0]["corrupted"])
    seeds = sum(run["experiment"] == kinds[0] for run in runs)
    return (
        f"**Detection of {flagged} corrupted pairs among {len(runs[0]['goodness']['mutual'])}**, mean ±"
        f" standard deviation of {seeds} corruptions; *found* is precision and"
        f" recall at once, {flagged} being flagged\n\n{_markdown(rows)}"
    )


def _kept(runs: Sequence[Run], results: Path) -> str:
    table = differences(runs, plain="everything", metrics=METRICS)
    plots.kept(table, LABELS, METRICS, results.with_name(f"{results.stem}_kept.png"))
    against = differences(runs, plain="mutual", metrics=["nll_forward"])
    chosen = ["nll_forward", "nll_reverse", "auc_mutual"]
    changes = [f"{METRICS[chosen[0]]}, against {name}" for name in ("everything", "`mutual`")]
    rows = [["trained on", "pairs", "corrupted", "tokens of y", *(METRICS[name] for name in chosen), *changes]]
    for experiment, own in table.runs.items():
        facts = [run["facts"] for run in own]
        counts = [_mean([fact[name] for fact in facts], 0) for name in ("corrupted_left", "tokens_scored")]
        means = [_mean(table.values(experiment, name)) for name in chosen]
        both = [NONE if experiment == t.plain else _difference(t, experiment, chosen[0]) for t in (table, against)]
        rows.append([_label(experiment), str(facts[0]["pairs"]), *counts, *means, *both])
    return f"**Plain SFT on the pairs that each score keeps**, with equal numbers of steps\n\n{_markdown(rows)}"


def _label(name: str) -> str:
    return LABELS.get(name, f"`{name}`")


def _mean(values: Sequence[float], digits: int = 3) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _difference(table: Table, experiment: str, metric: str) -> str:
    change = table.change(experiment, metric)
    mark = {1: " ▲", -1: " ▼", 0: ""}[change.verdict]
    return f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]{mark}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(rows[0], rows[1:])


def insert(file: Path, text: str) -> None:
    """Replace the text between the two marks of a file; create the file if it does not exist."""
    content = file.read_text() if file.exists() else "\n".join((*MARKS, ""))
    try:
        file.write_text(inserted(content, MARKS, text))
    except ValueError as error:
        raise SystemExit(f"{file}: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file written by python -m bench.quality.study")
    parser.add_argument("--into", type=Path, required=True, help="write the tables into this file")
    chosen = parser.parse_args()
    make(chosen.results, chosen.into)


if __name__ == "__main__":
    main()
