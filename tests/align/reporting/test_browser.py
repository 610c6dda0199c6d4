"""The page in a real browser without a network: sliders, brush, keyboard, and what a screen reader gets."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from main_align.cli.app import app
from main_align.filtering.filter import filter_scores
from main_align.reporting import joint
from main_align.reporting.report import write_report
from main_align.scoring.columns import COLUMNS
from main_align.scoring.score_file import read_columns, score_rows_of
from typer.testing import CliRunner

from .browser import Browser, browser, find_chromium
from .test_report import ATTACK, preset_scores, scored

ROWS = "#kept-by > :nth-child(2) tbody tr"  # of the table by kind
CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A page, its scores, and an open browser."""
    folder = tmp_path_factory.mktemp("browser")
    scores = scored(folder)
    write_report(scores, folder / "report.html", group_by="kind")
    with browser(CHROMIUM or "", folder) as opened:
        groups = {2: np.arange(40) % 3}  # by kind
        yield SimpleNamespace(browser=opened, page=folder / "report.html", scores=scores, folder=folder, groups=groups)


def kept(report: SimpleNamespace, **rule: Any) -> np.ndarray:
    """The rows that the command of the page keeps."""
    return filter_scores(report.scores, report.folder / "kept.jsonl", scores_only=True, **rule).kept


def text(opened: Browser, selector: str) -> str:
    value: str = opened.js(f"document.querySelector({json.dumps(selector)}).textContent")
    return value


def slide(opened: Browser, name: str, value: int) -> None:
    opened.js(
        f"{{const s = document.getElementById('{name}'); s.value = {value}; s.dispatchEvent(new Event('input'))}}"
    )


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_loads_without_a_network_and_without_errors(report: SimpleNamespace, width: int) -> None:
    opened: Browser = report.browser
    opened.open(report.page, width=width)
    assert opened.problems() == []
    assert opened.js("document.documentElement.scrollWidth") <= width
    assert text(opened, "#kept") == "20 of 40 rows kept (50.0%)"
    drawn = opened.js("[...document.querySelectorAll('.chart')].map((c) => c.querySelector('canvas').width)")
    assert len(drawn) == opened.js("data.scores.length") + 2  # the cut-off and the scatter plot
    assert all(size > 200 for size in drawn)


def test_no_script_of_a_response_runs(report: SimpleNamespace) -> None:
    opened: Browser = report.browser
    opened.open(report.page, width=1400)
    opened.js("{const s = document.getElementById('search'); s.value = 'script'; s.dispatchEvent(new Event('input'))}")
    assert ATTACK in opened.js("[...document.querySelectorAll('#pair-rows p')].map((p) => p.textContent)")
    assert opened.js("document.querySelectorAll('img').length") == 0
    assert opened.js("document.title") != "run"
    # Nor one that finds its way into the page after all.
    opened.js(
        "{const s = document.createElement('script'); s.textContent = 'document.title=1'; document.body.append(s)}"
    )
    opened.js("document.body.setAttribute('onclick', 'document.title = 1'), document.body.click()")
    assert opened.js("document.title") not in ("run", "1")
    assert any("Content Security Policy" in problem for problem in opened.problems())


@pytest.mark.parametrize("name", ["mutual", "ifd"])
def test_the_sliders_show_what_the_filter_keeps(report: SimpleNamespace, name: str) -> None:
    opened: Browser = report.browser
    opened.open(report.page, width=1400, fragment=f"#criterion={name}&keep=0.33")
    share = kept(report, by=name, keep=0.33)
    assert text(opened, "#kept").startswith(f"{share.sum()} of 40 rows kept")
    assert text(opened, "#command").endswith(f"{report.scores} -o kept.jsonl --by {name} --keep 0.33")
    for position in (0, 70, 99):
        slide(opened, "share", position)
        share = kept(report, by=name, keep=(position + 1) / 100)
        assert text(opened, "#kept").startswith(f"{share.sum()} of 40 rows kept")
        cells = opened.js(
            f"[...document.querySelectorAll('{ROWS}')].map((row) => row.innerText.split('\t').slice(0, 2))"
        )
        kinds = np.arange(40) % 3
        assert {label: int(count) for label, count in cells} == {str(k): share[kinds == k].sum() for k in range(3)}
    opened.js("document.querySelector('[name=mode][value=limits]').click()")
    for low, high in ((10, 30), (5, 200), (-1, 20)):
        slide(opened, "max", high)
        slide(opened, "min", low)
        command = text(opened, "#command").split()
        rule = {option[2:5]: float(option[6:]) for option in command if option.startswith(("--min", "--max"))}
        assert rule
        assert text(opened, "#kept").startswith(f"{kept(report, by=name, **rule).sum()} of 40 rows kept")
    assert opened.js("location.hash") == f"#criterion={name}&max={rule['max']}"


def command_of(report: SimpleNamespace) -> tuple[str, np.ndarray]:
    """The command that the page shows, and the rows that it keeps when it is run."""
    command = text(report.browser, "#command")
    words = shlex.split(command.replace("kept.jsonl", str(report.folder / "kept.jsonl")))
    assert words[:2] == ["main-align", "filter"]
    done = CliRunner().invoke(app, [*words[1:], "--scores-only"])
    assert done.exit_code == 0, done.output
    kept_ids = {json.loads(line)["id"] for line in (report.folder / "kept.jsonl").read_text().splitlines()}
    return command, np.array([row["id"] in kept_ids for row in score_rows_of(report.scores)])


def check_kept(report: SimpleNamespace) -> str:
    """Compare the page's counts, in all and by group, and its tags with the result of its command."""
    command, rows = command_of(report)
    assert 0 < rows.sum() < len(rows)
    assert text(report.browser, "#kept").startswith(f"{rows.sum()} of {len(rows)} rows kept")
    for number, codes in report.groups.items():
        table = f"#kept-by > :nth-child({number}) tbody tr"
        cells = report.browser.js(
            f"[...document.querySelectorAll('{table}')].map((row) => row.innerText.split('\t').slice(0, 2))"
        )
        assert {label: int(count) for label, count in cells} == {str(k): rows[codes == k].sum() for k in set(codes)}
    shown = report.browser.js("pairs.label.map((label, place) => [Number(label), isKept(place)])")
    assert all(rows[row - 1] == is_kept for row, is_kept in shown)
    return command


def change(opened: Browser, selector: str, event: str, value: Any) -> None:
    find = f"const s = document.querySelector('{selector}')"
    opened.js(f"{{{find}; s.value = '{value}'; s.dispatchEvent(new Event('{event}'))}}")


@pytest.mark.parametrize("rule", ["keep=0.4", "min=0", ""])
def test_several_conditions_show_what_their_command_keeps(report: SimpleNamespace, rule: str) -> None:
    opened: Browser = report.browser
    table = read_columns(report.scores, "ifd", "nll_y").columns
    high, (low, end) = np.nanquantile(table["ifd"], 0.8), np.nanquantile(table["nll_y"], [0.1, 0.9])
    fragment = f"#criterion=mutual&{rule}&also=ifd::{high}&also=nll_y:{low}:{end}"
    opened.open(report.page, width=1400, fragment=fragment)
    assert opened.problems() == []
    command = check_kept(report)
    assert [command.count(f"--{option}") for option in ("max ifd=", "min nll_y=", "max nll_y=")] == [1, 1, 1]
    assert ("--by" in command) is bool(rule)
    opened.js("document.querySelector('#conditions li:nth-child(2) button').click()")
    assert check_kept(report).count("nll_y") == 0
    change(opened, "#add-condition", "change", "semantic")
    change(opened, "#conditions li:nth-child(2) input", "input", 20)
    assert "--min semantic=" in check_kept(report)
    assert "also=semantic" in opened.js("location.hash")


def test_the_recommended_preset_shows_its_command_and_can_be_combined(report: SimpleNamespace, tmp_path: Path) -> None:
    opened: Browser = report.browser
    scores = preset_scores(tmp_path, 300)
    write_report(scores, tmp_path / "report.html", text=False)
    preset = SimpleNamespace(browser=opened, scores=scores, folder=tmp_path, groups={})
    opened.open(tmp_path / "report.html", width=390)
    opened.js("document.getElementById('preset').click()")
    assert check_kept(preset).endswith("-o kept.jsonl --recommended")
    opened.js("document.querySelector('[name=mode][value=share]').click()")
    change(opened, "#add-condition", "change", "semantic")
    ending = "--by mutual --keep 0.5"
    assert check_kept(preset).endswith(ending)
    assert opened.js("document.documentElement.scrollWidth") <= 390
    opened.open(tmp_path / "report.html", width=390, fragment=opened.js("location.hash"))
    assert opened.js("document.getElementById('preset').checked")
    command = check_kept(preset)
    assert "--recommended --min semantic=" in command
    assert command.endswith(ending)
    assert opened.problems() == []


def test_an_estimate_says_so(report: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "JOINT", 200)
    opened: Browser = report.browser
    scores = preset_scores(tmp_path, 400)
    write_report(scores, tmp_path / "report.html", text=False)
    exact = filter_scores(scores, tmp_path / "kept.jsonl", recommended=True, scores_only=True).kept.sum()
    opened.open(tmp_path / "report.html", width=1400, fragment="#criterion=mutual&recommended=1")
    assert text(opened, "#kept").startswith(f"{exact} of 400 rows kept")  # the preset alone is exact
    change(opened, "#add-condition", "change", "semantic")
    assert text(opened, "#kept").startswith("about ")
    assert opened.js("document.getElementById('estimated').offsetHeight") > 0
    estimate = int(text(opened, "#kept").split()[1])
    _, rows = command_of(SimpleNamespace(browser=opened, scores=scores, folder=tmp_path))
    assert abs(estimate - rows.sum()) < 400 * 3 * (0.25 / 200) ** 0.5


def test_a_range_of_the_fragment_is_that_of_the_filter(report: SimpleNamespace) -> None:
    opened: Browser = report.browser
    low, high = 0.98, 1.02
    opened.open(report.page, width=390, fragment=f"#criterion=ifd&min={low}&max={high}")
    command = text(opened, "#command").split()
    rule = {option[2:5]: float(option[6:]) for option in command if option.startswith(("--min", "--max"))}
    assert rule == {"min": low, "max": high}
    assert text(opened, "#kept").startswith(f"{kept(report, by='ifd', min=low, max=high).sum()} of 40 rows kept")


def test_the_order_of_the_pairs_is_that_of_the_filter(report: SimpleNamespace) -> None:
    opened: Browser = report.browser
    opened.open(report.page, width=1400, fragment="#criterion=nll_y&keep=0.5")
    values = read_columns(report.scores, "nll_y").columns["nll_y"]
    ranked = [row + 1 for row in np.argsort(values, kind="stable") if not np.isnan(values[row])]
    shown = "[...document.querySelectorAll('#pair-rows .facts-line b:first-child')].map((b) => Number(b.textContent))"
    assert opened.js(shown) == ranked[:10]
    order = "{{const s = document.getElementById('order'); s.value = '{}'; s.dispatchEvent(new Event('change'))}}"
    opened.js(order.format("worst"))
    assert opened.js(shown) == ranked[::-1][:10]
    opened.js(order.format("cut"))
    cut = values[ranked[19] - 1]
    nearest = sorted(ranked, key=lambda row: abs(values[row - 1] - cut))[:10]
    assert sorted(opened.js(shown)) == sorted(nearest)
    opened.js("document.getElementById('more').click()")
    assert len(opened.js(shown)) == 20
    tags = opened.js("[...document.querySelectorAll('#pair-rows .tag:first-of-type')].map((t) => t.textContent)")
    rows = opened.js(shown)
    share = kept(report, by="nll_y", keep=0.5)
    assert tags[::1][: len(rows)] == ["kept" if share[row - 1] else "dropped" for row in rows]


def test_brushing_lists_the_rows_in_the_box(report: SimpleNamespace) -> None:
    opened: Browser = report.browser
    opened.open(report.page, width=1400)
    opened.js("document.getElementById('scatter').scrollIntoView({block: 'center'})")
    area = opened.js("JSON.parse(JSON.stringify(document.getElementById('brush').getBoundingClientRect()))")
    axes = opened.js("axes")
    table = read_columns(report.scores, "mutual").columns
    x, y = table["pmi_forward"], table["pmi_reverse"]
    box = [[np.nanquantile(side, 0.3), np.nanquantile(side, 0.8)] for side in (x, y)]

    def pixel(a: float, b: float) -> tuple[float, float]:
        (left, right), (bottom, top) = axes
        across = area["left"] + (a - left) / (right - left) * area["width"]
        return across, area["top"] + (top - b) / (top - bottom) * area["height"]

    opened.drag(pixel(box[0][0], box[1][0]), pixel(box[0][1], box[1][1]))
    inside = (x >= box[0][0]) & (x <= box[0][1]) & (y >= box[1][0]) & (y <= box[1][1])
    listed = opened.js("brushed.places.map((place) => Number(pairs.label[place]))")
    # A point within a pixel of the box's edge may fall on either side.
    close = np.zeros(len(x), dtype=bool)
    for side, limits, (low, high), size in ((x, box[0], axes[0], area["width"]), (y, box[1], axes[1], area["height"])):
        close |= np.min([np.abs(side - limit) for limit in limits], axis=0) < 1.5 * (high - low) / size
    certain = {row + 1 for row in np.flatnonzero(inside & ~close)}
    assert len(certain) > 4
    assert certain <= set(listed) <= {row + 1 for row in np.flatnonzero(inside | close)}
    assert text(opened, "#brush-count").startswith(f"{len(listed)} of the rows in the plot")
    assert opened.js("document.querySelectorAll('#brush-rows li').length") == min(10, len(listed))


def test_a_quadrant_lists_its_rows_by_keyboard(report: SimpleNamespace) -> None:
    opened: Browser = report.browser
    opened.open(report.page, width=1400)
    table = read_columns(report.scores, "mutual").columns
    x, y = table["pmi_forward"], table["pmi_reverse"]
    low = (x < np.nanmedian(x)) & (y < np.nanmedian(y))
    opened.js("document.querySelector('[data-quadrant=\"3\"]').focus()")
    opened.press("Enter")
    assert text(opened, "#brush-count").startswith(f"both low: {low.sum()} rows, {low.sum()} of them in the plot")
    listed = opened.js("brushed.places.map((place) => Number(pairs.label[place]))")
    assert set(listed) == {row + 1 for row in np.flatnonzero(low)}
    assert opened.js("document.querySelector('[data-quadrant=\"3\"]').getAttribute('aria-pressed')") == "true"


def test_the_slider_moves_by_keyboard_and_says_its_value(report: SimpleNamespace) -> None:
    opened: Browser = report.browser
    opened.open(report.page, width=1400)
    opened.js("document.getElementById('share').focus()")
    opened.press("ArrowRight")
    count = kept(report, by="mutual", keep=0.51).sum()
    assert text(opened, "#kept").startswith(f"{count} of 40 rows kept")
    assert (
        opened.js("document.getElementById('share').getAttribute('aria-valuetext')") == f"best 51%, {count} rows kept"
    )
    opened.press("Home")
    assert text(opened, "#share-shown") == "best 1%"


def test_controls_have_names_and_tables_captions(report: SimpleNamespace) -> None:
    opened: Browser = report.browser
    opened.open(report.page, width=1400, fragment="#criterion=mutual&keep=0.5&also=ifd::1")
    tree = opened.call("Accessibility.getFullAXTree")["nodes"]
    named = [(n["role"]["value"], n["name"]["value"]) for n in tree if not n["ignored"] and "name" in n and "role" in n]
    for role in ("slider", "combobox", "searchbox", "radio", "checkbox", "button", "image", "table", "region"):
        names = [name for found, name in named if found == role]
        assert names, role
        assert all(names), role
    assert any(role == "image" and "median" in name for role, name in named)
    assert opened.js(
        "[...document.querySelectorAll('table')].every((t) => t.caption && t.querySelector('th[scope=col]'))"
    )
    assert opened.js("[...document.querySelectorAll('h1, h2')].map((h) => h.tagName)")[0] == "H1"


def test_the_axis_says_which_direction_is_better(report: SimpleNamespace) -> None:
    opened: Browser = report.browser
    opened.open(report.page, width=1400)
    names = opened.js(
        "[...charts.values()].slice(0, 16).map((c) => [c.getOption().title?.[0]?.text, c.getOption().xAxis[0].name])"
    )
    for title, name in names:
        if title:
            assert f"{COLUMNS[title].better} is better" in name
