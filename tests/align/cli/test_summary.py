"""Summaries, plots and progress: they show the right numbers."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from main_align.cli.doctor import run_checks
from main_align.cli.plots import plot_scores
from main_align.cli.progress_bar import ProgressBar, clock
from main_align.cli.summary import filter_summary, histogram, score_summary, status_table
from main_align.errors import UserError
from main_align.filtering.filter import FilterResult
from main_align.progress import (
    Progress,
)
from main_align.scoring.columns import PANELS
from main_align.scoring.score_file import ScoreTable
from rich.console import Console, RenderableType

VALUES = np.array([0.0, 1.0, 2.0, 3.0, np.nan])


def shown(renderable: RenderableType) -> str:
    console = Console(width=110, record=True, quiet=False, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def filtered(aligned: bool = False) -> FilterResult:
    table = ScoreTable({"mutual": VALUES, "ifd": VALUES}, Counter(ok=4, bad_json=1), {"bad_json": "line 3: no JSON"}, 5)
    kept = np.array([False, False, True, True, False])
    marks = np.array([0, 1, 1, 1, np.nan]) if aligned else None
    return FilterResult("mutual", False, table, kept, 2.0, {"bad_json": 1}, {"ifd <= 2": 1}, marks)


def test_summaries_show_counts_and_quantiles() -> None:
    text = shown(status_table({"ok": 1234, "bad_json": 1}))
    assert "1,234" in text
    assert "not a JSON object" in text
    text = shown(score_summary({"mutual": VALUES, "pmi_forward": VALUES[-1:]}))
    assert "1.5" in text, "the median, nulls left out"
    assert "pmi_forward" not in text, "a score without values"


def test_a_histogram_counts_every_row_once() -> None:
    text = shown(histogram(np.array([0.0] * 30 + [1.0] * 5), "t", bins=2))
    assert [line.split()[3] for line in text.splitlines()[1:3]] == ["30", "5"]
    assert shown(histogram(np.array([7.0]), "one row"))


def test_the_filter_summary_counts_kept_and_dropped_rows() -> None:
    text = shown(filter_summary(filtered(aligned=True)))
    assert "higher is better, kept if >= 2" in text
    assert "kept 2 of 5 rows" in text
    assert "bad_json 1" in text
    assert "dropped because not ifd <= 2: 1" in text
    assert "kept 2 of 3 rows marked aligned and 0 of 1 rows marked not aligned" in text
    row = next(line for line in text.splitlines() if line.startswith("mutual")).split()
    assert row[2] == "2.5", "median of kept"
    assert row[5] == "0.5", "median of dropped"


@pytest.mark.parametrize("aligned", [False, True])
def test_a_plot_is_drawn(tmp_path: Path, aligned: bool) -> None:
    from matplotlib import image

    done = filtered(aligned)
    path = tmp_path / "plot.png"
    columns = done.table.columns
    plot_scores(path, columns, panels=PANELS, title="t", threshold=("nll_y", 1.0), aligned=done.aligned)
    pixels = image.imread(path)
    assert pixels.shape[0] > 600
    assert pixels.std() > 0.05, "something is drawn"
    with pytest.raises(UserError, match=r"\.png"):
        plot_scores(tmp_path / "plot.xyz", columns, panels=PANELS, title="t")


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as progress_bar:
        progress_bar(Progress("scoring", 10, 100, 0, 500, 2.0))
        progress_bar(Progress("scoring", 20, 100, 0, 900, 2.5))  # too soon for another line
        progress_bar(Progress("scoring", 100, 100, 0, 5000, 10.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "scoring: 10/100 pairs, 250 tokens/s, 0:18 left",
        "scoring: 100/100 pairs, 500 tokens/s",
    ]


def test_time_left_ignores_what_an_earlier_run_did(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as progress_bar:
        progress_bar(Progress("scoring", 60, 100, 50, 100, 5.0))
    assert "0:20 left" in capsys.readouterr().err


def test_a_duration_is_formatted() -> None:
    assert [clock(s) for s in (0, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]


def test_doctor_reports_a_component_that_fails_to_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import main_kernels

    names = {check.name for check in run_checks()}
    assert {"torch", "backend plain", "transformers", "default model"} <= names

    def broken() -> dict[str, str]:
        raise RuntimeError("module is gone")

    monkeypatch.setattr(main_kernels, "backend_report", broken)
    checks = {check.name: check for check in run_checks()}
    assert not checks["backends"].ok
    assert "module is gone" in checks["backends"].state
    assert "default model" in checks
