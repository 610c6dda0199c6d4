"""PICTURES: the pictures of timings in bench/results/. Each holds the digest of the rows that it shows, so that a check
needs no drawing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # needs no display
from matplotlib import pyplot
from matplotlib.ticker import NullFormatter
from PIL import Image

from ..cases import CASES
from ..ratios import ratio_of
from ..records import machine_text, place_text
from .scaling import Curve, Scaled, floor_of, scaled
from .tables import others, variant

Rows = Sequence[Mapping[str, Any]]
BLUE, ORANGE, GREEN, RED, GREY = "#3b6fb6", "#e08a3c", "#3a9a5b", "#c0443c", "#8a8a8a"
RUNS = {"ours": BLUE, "eager": ORANGE, "torch_compile": GREEN}
PEERS = (ORANGE, GREEN, RED, "#8a5fb0", GREY)
DIGEST = "Rows"
"""The field of a PNG file with the digest of its rows."""


def ratios(rows: Rows) -> Any:
    """Draw a point per case at its large size: time over bare products with the quartiles, ours and torch.compile."""
    points = []
    for row in rows:
        if row["size"] != "large" or row["inputs"] != "random":
            continue
        for target in row["targets"]:
            got = ratio_of(row, target["run"], target["against"])
            if got and target["quantity"] == "time" and target["against"].startswith("products") and target["must"]:
                phase = row["runs"][target["run"]]["phase"]
                name = f"{row['case']}{variant(target['run'], phase)}, {row['dtype']}"
                _, compiled, _ = others(row, phase)
                points.append((name, row, target, got, compiled and ratio_of(row, compiled, target["against"])))
    names = list(dict.fromkeys(name for name, *_ in points))
    places = sorted({place_text(row["machine"]) for _, row, *_ in points})
    figure, axis = pyplot.subplots(figsize=(10, 1.2 + 0.3 * len(names)), layout="constrained")
    for name, row, target, got, compiled in points:
        place = places.index(place_text(row["machine"]))
        y = names.index(name) + 0.3 * (place - (len(places) - 1) / 2)
        colour = (BLUE, ORANGE, GREEN)[place % 3]
        spread = [[got.median - got.low], [got.high - got.median]]
        axis.errorbar(got.median, y, xerr=spread, fmt="o", markersize=5, color=colour, label=f"ours, {places[place]}")
        if compiled:
            label = f"torch.compile, {places[place]}"
            axis.plot(compiled.median, y, "x", markersize=5, color=colour, alpha=0.6, label=label)
        axis.plot([target["must"]] * 2, [names.index(name) - 0.4, names.index(name) + 0.4], color=RED, label="limit")
    axis.axvline(1, color=GREY, linewidth=1)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="time / bare matrix products of the same run")
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", alpha=0.25)
    handles = dict(reversed(pair) for pair in zip(*axis.get_legend_handles_labels(), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False)
    axis.set_title("Median of the rounds with quartiles, large sizes", fontsize=10, loc="left")
    return figure


def times(rows: Rows) -> Any:
    """Draw time against each dimension, in units of the products at the smallest size; the products are a line."""
    return _sweeps(rows, "time / products at the smallest size", _time)


def memory(rows: Rows) -> Any:
    """Draw peak memory against each dimension, beyond inputs and gradients."""
    return _sweeps(rows, "peak MB beyond inputs and gradients", lambda entry, run: entry.memory(run))


def _time(entry: Scaled, run: str) -> Curve:
    unit = entry.time(floor_of(entry)).values[0]
    curve = entry.time(run)
    return Curve(curve.sizes, [value / unit for value in curve.values])


def _sweeps(rows: Rows, label: str, curve_of: Callable[[Scaled, str], Curve]) -> Any:
    entries = scaled(rows)
    columns = min(3, max(1, len(entries)))
    lines = -(-max(1, len(entries)) // columns)
    size = (4.4 * columns, 3.4 * lines + 0.6)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(entries) :]:
        axis.set_visible(False)
    for axis, entry in zip(axes.flat, entries, strict=False):
        floor = curve_of(entry, floor_of(entry))
        if floor.values:
            axis.plot(*floor, color="#333333", linewidth=1.2, label="bare products")
        for run, colour in RUNS.items():
            curve = curve_of(entry, run)
            axis.plot(*curve, color=colour, marker="o", markersize=4, linewidth=1.5, label=run.replace("_", "."))
        sweep = CASES[entry.case].sweeps[entry.dimension]
        fixed = ", ".join(f"{name.upper()} = {value}" for name, value in sweep.shape.items())
        axis.set_title(f"{entry.case}, {fixed}, {entry.dtype}\n{machine_text(entry.machine)}", fontsize=9)
        axis.set(xscale="log", yscale="log", xlabel=entry.dimension.upper())
        axis.set_xticks(sweep.sizes, [str(size) for size in sweep.sizes], fontsize=8)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel(label, fontsize=9)
    handles = {text: h for axis in axes.flat for h, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def throughput(rows: Rows) -> Any:
    """Draw the throughput of scoring against the length of a pair, as a share of what its products alone allow."""
    return _shares([row for row in rows if "tokens_per_pair" in row["facts"]])


def _shares(rows: Rows) -> Any:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dtype"], machine_text(row["machine"])), []).append(row)
    figure, axes = pyplot.subplots(
        1, max(1, len(groups)), figsize=(5.2 * max(1, len(groups)), 4), layout="constrained", squeeze=False
    )
    for axis, ((dtype, where), group) in zip(axes[0], groups.items(), strict=False):
        group.sort(key=lambda row: row["facts"]["tokens_per_pair"])
        names = dict.fromkeys(n for row in group for n, run in row["runs"].items() if run["role"] in ("ours", "peer"))
        colours = iter(PEERS)
        for name in names:
            found = [(row["facts"]["tokens_per_pair"], ratio_of(row, name, "products")) for row in group]
            points = [(tokens, 1 / got.median) for tokens, got in found if got is not None]
            if points:
                style = {"linewidth": 2.2, "color": BLUE} if name == "ours" else {"color": next(colours, GREY)}
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name.replace("_", " "), **style)
        axis.axhline(1, color="#333333", linewidth=1)
        axis.set_title(f"{dtype}\n{where}", fontsize=9)
        axis.set(xscale="log", xlabel="tokens per pair, both sides")
        axis.set_ylim(0, max(1.05, axis.get_ylim()[1]))
        axis.set_xticks([row["facts"]["tokens_per_pair"] for row in group])
        axis.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    axes[0][0].set_ylabel("pairs/s, as a share of what the products alone allow")
    return figure


PICTURES: dict[str, tuple[str, Callable[[Rows], Any]]] = {
    "kernels_ratios.png": ("kernels", ratios),
    "kernels_time.png": ("kernels", times),
    "kernels_memory.png": ("kernels", memory),
    "scoring_throughput.png": ("scoring", throughput),
}
"""File: the suite whose rows it shows, and what draws it."""


def _digest(rows: Rows) -> str:
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()[:16]


def draw(name: str, rows: Rows, path: Path) -> None:
    """Draw a picture into a file.

    Args:
        name: a key of PICTURES.
        rows: rows of all suites.
        path: the PNG file.
    """
    suite, make = PICTURES[name]
    shown = [row for row in rows if row["suite"] == suite]
    figure = make(shown)
    figure.savefig(path, dpi=110, metadata={DIGEST: _digest(shown)})
    pyplot.close(figure)


def is_current(name: str, rows: Rows, path: Path) -> bool:
    """Return True if the file of a picture was drawn from the rows of its suite among these."""
    shown = [row for row in rows if row["suite"] == PICTURES[name][0]]
    if not path.exists():
        return False
    with Image.open(path) as image:
        return image.info.get(DIGEST) == _digest(shown)
