"""plot_scores, check_plot: histograms of the scores as an image file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..colors import BLUE, GREY, ORANGE
from ..data.atomic import atomic_write
from ..data.write import check_place
from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PLOT_ENDINGS = ".png, .svg, .pdf"
PANELS_PER_ROW = 3


def plot_scores(
    path: str | Path,
    columns: Mapping[str, Floats],
    *,
    panels: Mapping[str, str],
    title: str,
    threshold: tuple[str, float] | None = None,
    aligned: Floats | None = None,
) -> None:
    """Plot a histogram of each main score.

    Args:
        path: the image file, with one of PLOT_ENDINGS.
        columns: float64[N] each, NaN for a row without a score.
        panels: the columns to plot, in order, with the label of their axis.
        title: the title of the figure.
        threshold: a column and the worst value kept of it, drawn as a line. Default: no line.
        aligned: float64[N], 1 for rows marked as aligned, 0 for rows marked as not aligned, NaN for other rows. The
            groups have different colours. Default: one colour.

    Raises:
        UserError: the path is not usable.
    """
    path = Path(path)
    check_plot(path)
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")  # needs no display
    from matplotlib import pyplot

    names = _panels(panels, threshold)
    n_rows = -(-len(names) // PANELS_PER_ROW)
    size = (12, 3.2 * n_rows)
    figure, axes = pyplot.subplots(n_rows, PANELS_PER_ROW, figsize=size, layout="constrained", squeeze=False)
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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix[1:].lower())
    pyplot.close(figure)


def check_plot(path: Path) -> None:
    """Raise UserError unless an image file can be written to `path`."""
    if path.suffix.lower() not in PLOT_ENDINGS.split(", "):
        raise UserError(f"--plot {path}: use one of the endings {PLOT_ENDINGS}")
    try:
        check_place(path)
    except UserError as error:
        raise UserError(f"--plot {error}") from None


def _panels(panels: Mapping[str, str], threshold: tuple[str, float] | None) -> list[str]:
    names = list(panels)
    if threshold and threshold[0] not in names:
        names[-1] = threshold[0]
    return names


def _panel(axis, name, values, aligned, limit) -> None:  # type: ignore[no-untyped-def]
    import numpy as np

    has_score = np.isfinite(values)
    axis.set_title(name, loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if not has_score.any():
        axis.text(0.5, 0.5, "no scores", ha="center", va="center", transform=axis.transAxes)
        return
    edges = np.histogram_bin_edges(values[has_score], bins=min(40, max(10, int(has_score.sum()) // 4)))
    if aligned is None:
        axis.hist(values[has_score], edges, color=BLUE)
    else:
        groups = {
            "marked aligned": (aligned == 1, BLUE),
            "marked not aligned": (aligned == 0, ORANGE),
            "not marked": (np.isnan(aligned), GREY),
        }
        groups = {label: group for label, group in groups.items() if (group[0] & has_score).any()}
        axis.hist(
            [values[has_score & in_group] for in_group, _ in groups.values()],
            edges,
            stacked=True,
            color=[color for _, color in groups.values()],
            label=list(groups),
        )
    axis.set_ylabel("rows", fontsize=9)
    axis.yaxis.get_major_locator().set_params(integer=True)
    if limit is not None:
        axis.axvline(limit, color=GREY, linestyle="--", linewidth=1.2, label="threshold")
