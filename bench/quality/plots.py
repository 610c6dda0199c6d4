"""Plots of the study: one dot per seed, one bar per mean, and plain training as a reference line."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

from .compare import Table
from .measures import BETTER
from .results import Run

BLUE, ORANGE, GREEN, RED, GREY = "#3b6fb6", "#e08a3c", "#3a9a5b", "#c0443c", "#8a8a8a"
UNTRAINED = "untrained"
VERDICT = {1: GREEN, -1: RED, 0: GREY}


def terms(table: Table, labels: Mapping[str, str], metrics: Mapping[str, str], path: Path) -> None:
    """Plot one panel per metric and one row per experiment; green beats plain SFT clearly, red is clearly worse."""
    seconds = {
        experiment: [run["facts"]["cpu_s"] for run in own]
        for experiment, own in table.runs.items()
        if "facts" in own[0]
    }
    panels = [*metrics, "seconds"]
    names = [name for name in table.runs if name != UNTRAINED]  # its likelihoods would compress the scale
    figure, axes = pyplot.subplots(2, 4, figsize=(15, 8.4), sharey=True, layout="constrained")
    for axis, metric in zip(axes.flat, panels, strict=True):
        _panel(axis, table, names, metric, metrics, seconds)
        if UNTRAINED in table.runs and metric != "seconds":
            before = statistics.fmean(table.values(UNTRAINED, metric))
            axis.set_xlabel(f"untrained: {before:.3f}", fontsize=9, color=GREY, loc="right")
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(names)), [labels.get(name, name) for name in names])
    axes[0, 0].invert_yaxis()
    figure.suptitle("Dots are seeds, bars are means; the line is plain SFT and its band the range of its seeds.\n"
                    "Green is better and red is worse, over seeds and resampled held-out pairs; grey is neither.",
                    fontsize=11, x=0.01, ha="left")  # fmt: skip
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _panel(
    axis: Any,
    table: Table,
    names: Sequence[str],
    metric: str,
    metrics: Mapping[str, str],
    seconds: Mapping[str, Sequence[float]],
) -> None:
    time = metric == "seconds"
    plain = seconds[table.plain] if time else table.values(table.plain, metric)
    axis.axvline(statistics.fmean(plain), color=BLUE, linewidth=1.2, zorder=0.8)
    axis.axvspan(min(plain), max(plain), color=BLUE, alpha=0.12, linewidth=0, zorder=0.7)
    for place, name in enumerate(names):
        values = seconds.get(name, []) if time else table.values(name, metric)
        if not values:
            continue
        change = None if time else table.changes.get((name, metric))
        color = BLUE if name == table.plain else VERDICT[change.verdict] if change else GREY
        _seeds(axis, place, values, color)
    if time:
        axis.set_title("CPU seconds of training (lower is better)", loc="left", fontsize=10)
        axis.set_xlim(left=0)
    else:
        arrow = "higher is better" if BETTER[metric] > 0 else "lower is better"
        axis.set_title(f"{metrics[metric].replace('`', '')} ({arrow})", loc="left", fontsize=10)
    _tidy(axis)


def cleaning(runs: Sequence[Run], labels: Mapping[str, str], path: Path) -> None:
    """Plot detection of corrupted pairs: AUC, precision against recall, and the scores."""
    kinds = list(dict.fromkeys(run["experiment"] for run in runs))
    colors = dict(zip(kinds, (BLUE, ORANGE), strict=False))
    own = {kind: [run for run in runs if run["experiment"] == kind] for kind in kinds}
    names = sorted(runs[0]["metrics"], key=lambda n: -statistics.fmean(r["metrics"][n]["auc"] for r in own[kinds[0]]))
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.8), layout="constrained", width_ratios=(1.25, 1, 1))
    for shift, kind in zip((-0.16, 0.16), kinds, strict=False):
        for place, name in enumerate(names):
            values = [run["metrics"][name]["auc"] for run in own[kind]]
            _seeds(axes[0], place + shift, values, colors[kind], label=kind if place == 0 else None)
    axes[0].axvline(0.5, color="black", linestyle=":", linewidth=1)
    axes[0].set_yticks(range(len(names)), [labels.get(name, name).replace("`", "") for name in names])
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, loc="upper left", title="responses")
    axes[0].set_title("AUC of aligned against corrupted pairs (0.5: chance)", loc="left", fontsize=10)

    shown = {"mutual": GREEN, "pmi_forward": BLUE, "ifd": ORANGE, "nll_y_given_x": RED}
    for name, color in shown.items():
        recall, precision = _curve(own[kinds[0]], name)
        axes[1].plot(recall, precision, color=color, linewidth=2, label=name)
    fraction = len(runs[0]["corrupted"]) / len(runs[0]["goodness"]["mutual"])
    axes[1].axhline(fraction, color="black", linestyle=":", linewidth=1)
    axes[1].set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axes[1].legend(frameon=False, loc="lower left")
    axes[1].set_title(f"Corrupted pairs found ({kinds[0]}, mean of seeds)", loc="left", fontsize=10)

    first = own[kinds[0]][0]
    bad = np.isin(np.arange(len(first["goodness"]["mutual"])), first["corrupted"])
    x, y = (np.array(first["goodness"][name]) for name in ("nll_y_given_x", "mutual"))
    axes[2].scatter(-x[~bad], y[~bad], s=18, color=BLUE, alpha=0.8, linewidth=0, label="aligned")
    axes[2].scatter(-x[bad], y[bad], s=22, color=RED, marker="x", linewidth=1.3, label="corrupted")
    axes[2].axhline(np.sort(y)[bad.sum()], color=GREY, linestyle="--", linewidth=1)
    axes[2].set(xlabel="nll_y_given_x (nats per token)", ylabel="mutual (nats per √token)")
    axes[2].legend(frameon=False)
    axes[2].set_title("One corruption: mutual flags the pairs below the line", loc="left", fontsize=10)
    for axis in axes:
        _tidy(axis)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def kept(table: Table, labels: Mapping[str, str], metrics: Mapping[str, str], path: Path) -> None:
    """Plot the held-out likelihood after training on the pairs that each score keeps, and their corrupted pairs."""
    names = list(table.runs)
    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4), sharey=True, layout="constrained")
    for place, name in enumerate(names):
        left = [run["facts"]["corrupted_left"] for run in table.runs[name]]
        axes[0].barh(place, statistics.fmean(left), color=RED, alpha=0.75, height=0.6)
    axes[0].set_title("corrupted pairs still in the training set", loc="left", fontsize=10)
    axes[0].set_yticks(range(len(names)), [labels.get(name, name) for name in names])
    axes[0].invert_yaxis()
    _tidy(axes[0])
    for axis, metric in zip(axes[1:], ("nll_forward", "auc_mutual"), strict=True):
        _panel(axis, table, names, metric, metrics, {})
    figure.suptitle(
        "Plain SFT on the pairs that each score keeps, equal numbers of steps", fontsize=11, x=0.01, ha="left"
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _curve(runs: Sequence[Run], name: str) -> tuple[Any, Any]:
    """Return precision at a grid of recalls, averaged over runs."""
    grid = np.linspace(0.02, 1, 50)
    curves = []
    for run in runs:
        good = np.array(run["goodness"][name])
        hit = np.isin(np.argsort(good, kind="stable"), run["corrupted"])
        precision, recall = hit.cumsum() / np.arange(1, len(hit) + 1), hit.cumsum() / hit.sum()
        curves.append([precision[recall >= at - 1e-9].max() for at in grid])
    return grid, np.mean(curves, axis=0)


def _seeds(axis: Any, place: float, values: Sequence[float], color: str, label: str | None = None) -> None:
    mean = statistics.fmean(values)
    axis.scatter(values, [place] * len(values), s=26, color=color, alpha=0.55, linewidth=0, label=label)
    axis.plot([mean, mean], [place - 0.22, place + 0.22], color=color, linewidth=3, solid_capstyle="butt")


def _tidy(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(color="#e4e4e4", linewidth=0.6)
    axis.tick_params(labelsize=9)
