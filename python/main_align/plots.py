"""Histograms of the scores as a picture; drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

Floats = NDArray[np.float64]

ACROSS = 3  # panels in a row of the picture
BLUE, ORANGE, GREY = "#3b6fb6", "#e08a3c", "#444444"


def plot_scores(
    path: str | Path,
    columns: Mapping[str, Floats],
    *,
    panels: Mapping[str, str],
    title: str,
    threshold: tuple[str, float] | None = None,
    aligned: Floats | None = None,
) -> None:
    """Write a picture with a histogram of each main score.

    Args:
        path: .png, .svg or .pdf.
        columns: float64[N] each, NaN where there is no score.
        panels: the columns that are drawn, in order, and the label of their axis.
        threshold: a column and the value up to which its rows were kept, drawn as a line.
        aligned: float64[N] of 1, 0 and NaN: the input's own mark, shown as two colours.
    """
    path = Path(path)
    check_plot(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = _panels(panels, threshold)
    down = -(-len(names) // ACROSS)
    figure, axes = pyplot.subplots(down, ACROSS, figsize=(12, 3.2 * down), layout="constrained", squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        values = columns.get(name, np.zeros(0))
        limit = threshold[1] if threshold and threshold[0] == name else None
        axis.set_xlabel(panels.get(name, ""), fontsize=9)
        _panel(axis, name, values, aligned, limit)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def check_plot(path: Path) -> None:
    """Raise UserError unless a picture can be written here under this ending."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot {path}: use an ending of .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--plot {path}: the folder {path.parent} does not exist; create it first")


def _panels(panels: Mapping[str, str], threshold: tuple[str, float] | None) -> list[str]:
    names = list(panels)
    if threshold and threshold[0] not in names:
        names[-1] = threshold[0]
    return names


def _panel(axis, name, values, aligned, limit) -> None:  # type: ignore[no-untyped-def]
    known = np.isfinite(values)
    axis.set_title(name, loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if not known.any():
        axis.text(0.5, 0.5, "no scores", ha="center", va="center", transform=axis.transAxes)
        return
    edges = np.histogram_bin_edges(values[known], bins=min(40, max(10, int(known.sum()) // 4)))
    if aligned is None:
        axis.hist(values[known], edges, color=BLUE)
    else:
        groups = {
            "marked aligned": (aligned == 1, BLUE),
            "marked not aligned": (aligned == 0, ORANGE),
            "not marked": (np.isnan(aligned), GREY),
        }
        groups = {label: group for label, group in groups.items() if (group[0] & known).any()}
        axis.hist(
            [values[known & mine] for mine, _ in groups.values()],
            edges,
            stacked=True,
            color=[color for _, color in groups.values()],
            label=list(groups),
        )
    axis.set_ylabel("rows", fontsize=9)
    axis.yaxis.get_major_locator().set_params(integer=True)
    if limit is not None:
        axis.axvline(limit, color=GREY, linestyle="--", linewidth=1.2, label="limit of what was kept")
