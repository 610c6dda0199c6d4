"""write_page, plot: the tables and the picture of the benchmark of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..report.tables import inserted, table

Cell = Mapping[str, float]

MARKS = ("<!-- bench.quality writes from here -->", "<!-- bench.quality ends here -->")
SHOWN = ("mutual", "mutual_novel", "nll_end", "semantic", "structural")
RIVALS = (
    "pmi_forward",
    "ifd",
    "ifd as published",
    "nll_y_given_x",
    "duality_gap",
    "length of the response",
    "sentence encoder",
)
NAMES = {
    "random": "random response",
    "neighbour": "response of the nearest instruction",
    "echo": "echo of the instruction",
    "echo_neighbour": "echo + the neighbour's response",
    "near_echo": "echo without its middle word",
    "truncated": "truncated at half",
    "cut_sentence": "truncated inside a sentence",
    "other_script": "answer in another script",
    "refusal": "refusal",
    "filler": "filler",
    "wrong_fact": "one number or name wrong",
    "wrong_input": "wrong input",
    "missing_input": "missing input",
    "swapped_system": "swapped system prompt",
    "swapped_system_scored": "swapped system prompt, with `--score-system`",
    "good": "good",
    "good_input": "good, with an input",
    "good_system": "good, with a system prompt",
    "good_system_scored": "good, with a system prompt and `--score-system`",
}


def write_page(result: Mapping[str, Any], page: Path) -> None:
    """Replace the marked part of a page by the tables.

    Args:
        result: the results of the benchmark.
        page: a Markdown file with both MARKS.
    """
    page.write_text(inserted(page.read_text(encoding="utf-8"), MARKS, tables(result)), encoding="utf-8")


def tables(result: Mapping[str, Any]) -> str:
    """Return all tables as Markdown."""
    part = result["parts"]["reporting"]
    host, pairs = result["machine"], result["pairs"]
    setting = (
        f"`{result['model']['model']}`, {result['model']['dtype']}, {pairs['scored']:,} pairs; {host['cpu']}, "
        f"torch {host['versions']['torch']}. Intervals contain 95% of 1,000 resamplings of the base rows."
    )
    differences = {f"`{name}`".replace(" - ", "` − `"): cells for name, cells in part["differences"].items()}
    removed = [[NAMES[kind], *_counted(cell)] for kind, cell in part["removed"].items()]
    flags = [
        [
            f"`{name}`",
            "; ".join(f"{NAMES[kind]} {_interval(cell)}" for kind, cell in flag["recall"].items()),
            f"{flag['precision']:.2f} of {flag['flagged']}",
            _interval(flag["good"]),
        ]
        for name, flag in part["flags"].items()
    ]
    layers = [
        [layer, name, *(f"{cell[key]:.3f}" for key in LAYER_KEYS)]
        for layer, cells in result["layers"].items()
        for name, cell in cells.items()
        if int(layer) % 6 == 0
    ]
    contrast = result.get("contrast")
    return "\n\n".join(
        [
            setting,
            "**AUC of good against corrupted pairs**, reporting part; 0.5 is chance",
            _auc_table(part["auc"], SHOWN, quoted=True),
            "**The same for other criteria**",
            _auc_table(part["auc"], RIVALS, quoted=False),
            "**Differences of AUC between definitions of a score**, reporting part",
            _auc_table(differences, tuple(differences), quoted=False, signed=True),
            f"**Rows that `--recommended` removes** ({', '.join(result['recommended'])}), reporting part",
            table(("kind", "removed", "n"), removed),
            "**Flags**, reporting part; precision is among the flagged pairs of all kinds of this part",
            table(("flag", "recall", "precision", "good pairs flagged"), flags),
            "**AUC by layer and transform of the states**, choosing part (80 pairs a kind)",
            table(("layer", "states", *LAYER_KEYS), layers),
            *(_contrast(contrast) if contrast else ()),
        ]
    )


def _contrast(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the title and the tables of contrastive PMI."""
    auc, differences = (
        {name.replace(" - ", " − "): values for name, values in result[key].items()} for key in ("auc", "differences")
    )
    title = (
        f"**Contrastive PMI**, choosing part; {result['passes']:.1f} passes per pair, random and nearest x_k together"
    )
    return (
        title,
        _auc_table(auc, tuple(auc), quoted=False),
        _auc_table(differences, tuple(differences), quoted=False, signed=True),
    )


LAYER_KEYS = ("semantic random", "semantic neighbour", "structural random", "structural neighbour")


def _auc_table(cells: Mapping[str, Any], scores: Sequence[str], *, quoted: bool, signed: bool = False) -> str:
    kinds = cells[scores[0]]
    head = ("corrupted pairs", "n", *(f"`{score}`" if quoted else score for score in scores))
    rows = [
        [NAMES[kind], str(kinds[kind]["n"]), *(_interval(cells[score][kind], signed) for score in scores)]
        for kind in kinds
    ]
    return table(head, rows)


def _interval(cell: Cell, signed: bool = False) -> str:
    sign = "+" if signed else ""
    digits = 3 if signed else 2
    value, low, high = (f"{cell[name]:{sign}.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _counted(cell: Cell) -> tuple[str, str]:
    return _interval(cell), str(cell["n"])


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw the AUC of each score by kind.

    Args:
        result: the results of the benchmark.
        path: the image file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    part = result["parts"]["reporting"]["auc"]
    scores = ("mutual", "mutual_novel", "nll_end", "semantic", "ifd", "sentence encoder")
    colors = ("#3b6fb6", "#2a9d5c", "#8a5fb0", "#e08a3c", "#999999", "#c0504d")
    kinds = list(part[scores[0]])
    height = 0.62 * len(kinds) + 1.2
    figure, axis = pyplot.subplots(figsize=(10, height), layout="constrained")
    for place, (score, color) in enumerate(zip(scores, colors, strict=True)):
        cells = [part[score][kind] for kind in kinds]
        y = np.arange(len(kinds)) + (place - (len(scores) - 1) / 2) * 0.13
        value, low, high = (np.array([cell[name] for cell in cells]) for name in ("value", "low", "high"))
        axis.errorbar(value, y, xerr=[value - low, high - value], fmt="o", ms=4.5, lw=1.2, color=color, label=score)
    for edge in np.arange(len(kinds) - 1) + 0.5:
        axis.axhline(edge, color="#e4e4e4", linewidth=0.8)
    axis.axvline(0.5, color="black", linestyle=":", linewidth=1)
    axis.set_yticks(
        range(len(kinds)), [f"{NAMES[kind]}\nn = {part[scores[0]][kind]['n']}" for kind in kinds], fontsize=8
    )
    axis.set(xlim=(-0.02, 1.02), ylim=(len(kinds) - 0.5, -0.5), xlabel="AUC, with 95% intervals; 0.5 is chance")
    axis.set_title(f"Good against corrupted pairs, {result['model']['model']}", loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(scores), loc="lower center", bbox_to_anchor=(0.5, -1 / height), fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
