"""The page without a browser: one file, safe, under its size, with the right numbers in its tables and data."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_align.errors import UserError
from main_align.filtering.filter import filter_scores
from main_align.filtering.limits import Limit
from main_align.reporting import joint
from main_align.reporting.groups import LISTED
from main_align.reporting.page import MAX_BYTES, SCRIPTS
from main_align.reporting.report import write_report
from main_align.reporting.shown import SAMPLE
from main_align.scoring.columns import COLUMNS, SCORES
from main_align.scoring.job import score_file
from main_align.scoring.manifest import manifest_path
from main_align.scoring.score_file import read_columns, score_rows_of, write_scores

from tests.align.fakes import FakeScorer

ATTACK = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"><!-- & \u2028"
SECRET = "zanzibar"


def rows(count: int = 40) -> list[dict[str, Any]]:
    """Pairs with an attack, a duplicate, a row that cannot be scored, and a secret in every text."""
    made = [
        {
            "id": f"{SECRET}-{n}",
            "prompt": f"{SECRET} question {n}",
            "completion": f"{SECRET} {'word ' * n}",
            "kind": n % 3,
        }
        for n in range(count)
    ]
    made[3]["completion"] = ATTACK
    made[5] |= {"prompt": made[4]["prompt"].upper() + "!", "completion": made[4]["completion"]}
    del made[7]["completion"]
    return made


def scored(folder: Path, data: list[dict[str, Any]] | None = None, name: str = "scores.parquet") -> Path:
    source, scores = folder / f"{name}.in.jsonl", folder / name
    source.write_text("".join(json.dumps(row) + "\n" for row in data or rows()))
    score_file(FakeScorer(), source, scores)
    return scores


class Parsed(HTMLParser):
    """The parts of a page: its tags, the texts of its scripts, and its visible text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.bytes = page.read_bytes()
        self.html = self.bytes.decode()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._open = ""
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.contents:
            self._open = tag
            self.contents[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.contents[self._open][-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.contents["script"][0])
        return data

    def score(self, name: str) -> dict[str, Any]:
        return next(score for score in self.data["scores"] if score["name"] == name)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    folder = tmp_path_factory.mktemp("page")
    write_report(scored(folder), folder / "report.html", group_by="kind")
    return Parsed(folder / "report.html")


def test_the_page_is_one_file_that_refers_to_no_other(page: Parsed) -> None:
    assert len(page.bytes) < 2_500_000
    assert page.html.lstrip().startswith("<!DOCTYPE html>")
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert "src" not in attributes
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")


def test_the_policy_allows_the_scripts_of_the_page_by_their_hashes(page: Parsed) -> None:
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [hashed(text) for text in page.contents["script"][1:]]
    assert rules["style-src"].split() == [hashed(text) for text in page.contents["style"]]
    assert len(page.contents["script"]) == 1 + len(SCRIPTS)


def test_a_script_in_a_response_is_text(page: Parsed) -> None:
    assert ATTACK in page.data["pairs"]["response"]
    assert "<script>document.title" not in page.html
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "<" not in page.contents["script"][0]


def test_a_script_in_a_table_is_text(tmp_path: Path) -> None:
    """In the duplicates, the groups, the reasons, the names of fields and of files."""
    data = rows()
    for row in data[:6]:
        row |= {"id": ATTACK, "prompt": ATTACK, "kind": ATTACK}
    scores = scored(tmp_path, data, name="<img src=x>.parquet")
    write_report(scores, tmp_path / "report.html", group_by="kind")
    parsed = Parsed(tmp_path / "report.html")
    assert ATTACK[:50] in parsed.text
    assert len(parsed.contents["script"]) == 1 + len(SCRIPTS)
    assert not [tag for tag, _ in parsed.tags if tag == "img"]


def test_no_text_leaves_no_id_reason_or_text(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    write_report(scores, tmp_path / "report.html", group_by="kind", text=False)
    page = Parsed(tmp_path / "report.html")
    assert SECRET not in page.html.lower()
    assert "line 8" not in page.html
    assert set(page.data["pairs"]["response"]) == set(page.data["pairs"]["id"]) == {""}
    assert "1 group," in page.text  # duplicates are counted all the same


def test_no_text_needs_no_data(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    (tmp_path / "scores.parquet.in.jsonl").unlink()
    with pytest.raises(UserError, match=r"--input.* --no-text"):
        write_report(scores, tmp_path / "report.html")
    write_report(scores, tmp_path / "report.html", text=False)
    assert "which was not found" in Parsed(tmp_path / "report.html").text


@pytest.mark.parametrize("name", ["mutual", "nll_y", "structural"])
def test_the_counts_are_those_of_the_filter(page: Parsed, tmp_path: Path, name: str) -> None:
    scores = scored(tmp_path)
    kinds = np.arange(40) % 3
    found, (everything, _, by_kind) = page.score(name), page.data["groupings"]
    assert everything["sizes"] == [40]
    for percent in (1, 33, 50, 100):
        kept = filter_scores(scores, tmp_path / "kept.jsonl", by=name, keep=percent / 100, scores_only=True).kept
        assert sum(found["shares"][0][:percent]) == kept.sum()
        table = np.array(found["shares"][2]).reshape(100, -1)[:percent].sum(0)
        assert dict(zip(by_kind["labels"], table, strict=True)) == {str(k): kept[kinds == k].sum() for k in range(3)}
        shown = [place for place, share in enumerate(found["share_of"]) if 0 <= share < percent]
        assert {page.data["pairs"]["label"][place] for place in shown} == {str(row + 1) for row in np.flatnonzero(kept)}
    for place in range(0, len(found["limits"]), 9):
        limit = found["limits"][place]
        kept = filter_scores(scores, tmp_path / "kept.jsonl", by=name, min=limit, scores_only=True).kept
        assert sum(found["cells"][0][2 * place + 1 :]) == kept.sum()


def test_every_score_of_the_list_is_shown_with_its_definition(page: Parsed) -> None:
    with_values = [name for name in SCORES if not COLUMNS[name].from_tokens]  # FakeScorer has no token ids
    assert [score["name"] for score in page.data["scores"]] == with_values
    assert all(score["better"] == COLUMNS[score["name"]].better for score in page.data["scores"])
    for column in COLUMNS.values():
        assert column.name in page.text
        assert column.definition in page.text


def test_the_statuses_have_their_counts_and_first_reasons(page: Parsed) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "ok39" in text
    assert re.search(r"missing_field1a field is absent, null or not textline 8: [^.]*completion", text)


def test_groups_have_medians(page: Parsed, tmp_path: Path) -> None:
    values = read_columns(scored(tmp_path), "mutual").columns["mutual"]
    for kind in range(3):
        assert f"{np.nanmedian(values[np.arange(40) % 3 == kind]):.4g}" in page.text


def test_flags_are_shown_if_the_file_has_them(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    flagged = tmp_path / "flagged.jsonl"
    lines = [
        json.dumps(row | {"flags": "echo,cut_off" if n == 2 else None}) for n, row in enumerate(score_rows_of(scores))
    ]
    flagged.write_text("\n".join(lines))
    write_report(flagged, tmp_path / "report.html", input=tmp_path / "scores.parquet.in.jsonl")
    pairs = Parsed(tmp_path / "report.html").data["pairs"]
    assert [flags for flags in pairs["flags"] if flags] == ["echo,cut_off"]


def test_a_file_without_a_manifest_says_so_and_its_command_names_the_input(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    manifest_path(scores).unlink()
    source = tmp_path / "scores.parquet.in.jsonl"
    write_report(scores, tmp_path / "report.html", input=source)
    page = Parsed(tmp_path / "report.html")
    assert "has no manifest" in page.text
    assert page.data["command"] == [f"main-align filter {scores} -o kept.jsonl ", f" --input {source}"]


def test_a_folder_of_scores_is_one_table_grouped_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "scored data"
    folder.mkdir()
    files = [scored(folder, rows(20), "a.parquet"), scored(folder, rows(30), "b.parquet")]
    for source in folder.glob("*.in.jsonl"):
        source.rename(tmp_path / source.name)
    with pytest.raises(UserError, match="--input"):
        write_report(folder, tmp_path / "report.html")
    for file in files:
        manifest = json.loads(manifest_path(file).read_text())
        manifest["source_path"] = str(tmp_path / f"{file.name}.in.jsonl")
        manifest_path(file).write_text(json.dumps(manifest))
    write_report(folder, tmp_path / "report.html")
    page = Parsed(tmp_path / "report.html")
    grouping = page.data["groupings"][2]
    assert (grouping["title"], grouping["labels"], grouping["sizes"]) == ("file", ["b.parquet", "a.parquet"], [30, 20])
    assert "b.parquet 30" in page.data["pairs"]["label"]
    before, after = page.data["command"]
    assert f"for scores in '{folder}'/*.parquet; do main-align filter" in before
    assert after == "; done"
    assert not page.data["shareable"]  # a share of each file is not the share of all
    with pytest.raises(UserError, match="holds 2"):
        write_report(folder, tmp_path / "report.html", input=tmp_path / "a.parquet.in.jsonl")


def test_many_rows_with_long_texts_are_sampled_and_fit(tmp_path: Path) -> None:
    """The worst texts for JSON, each character of which takes six bytes, and as many ranks as a page can hold."""
    count = joint.JOINT + 300
    generator = np.random.default_rng(0)
    texts = ["<" * 700, "\x01" * 700, "漢" * 700, "<\ud800" * 350]
    data = tmp_path / "data.jsonl"
    lines = [{"prompt": texts[n % 4], "completion": texts[n % 3], "s": f"{n % 999}" * 20} for n in range(count)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {name: generator.normal(size=count) for name in SCORES}

    def row(number: int) -> dict[str, Any]:
        texts = {name: str(number + 1) for name, column in COLUMNS.items() if column.kind == "text"}
        tokens = {name: number % 900 for name, column in COLUMNS.items() if column.kind == "count"}
        return texts | tokens | {name: column[number] for name, column in values.items()} | {"status": "ok"}

    write_scores(tmp_path / "scores.parquet", map(row, range(count)))
    write_report(tmp_path / "scores.parquet", tmp_path / "report.html", input=data, group_by="s")
    page = Parsed(tmp_path / "report.html")
    assert len(page.bytes) <= MAX_BYTES
    assert f"show {SAMPLE:,} random rows (seed 0)" in page.text
    assert re.search(r"Texts are cut after \d+ characters", page.text)
    assert len(page.data["drawn"]) == SAMPLE
    best = np.argsort(-values["mutual"])[:10]
    assert {str(row + 1) for row in best} <= set(page.data["pairs"]["label"])
    assert sum(page.score("mutual")["histogram"]["counts"]) == count


def test_the_same_scores_give_the_same_page(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    for name in ("a.html", "b.html"):
        write_report(scores, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    with pytest.raises(UserError, match=r"ending \.html"):
        write_report(scores, scores)
    with pytest.raises(UserError, match="no row has this field; the fields are 'id', 'prompt', 'completion', 'kind'"):
        write_report(scores, tmp_path / "report.html", group_by="sauce")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no score file"):
        write_report(tmp_path / "empty", tmp_path / "report.html")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        '{"id": "1", "mutual": null, "nll_y_given_x": null, "status": "too_long", "reason": "line 1 is long"}\n'
    )
    with pytest.raises(UserError, match=r"no row has a score.*line 1 is long"):
        write_report(bad, tmp_path / "report.html", text=False)


def unpacked(text: str, dtype: str = "<u2") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def test_several_conditions_are_ranges_of_ranks(page: Parsed, tmp_path: Path) -> None:
    """What the page's script counts: limits on two scores, then the best share of the rows that meet them."""
    scores = scored(tmp_path)
    low, high = page.score("ifd"), page.score("mutual")
    place, place_high = len(low["limits"]) // 3, len(high["limits"]) // 2
    limits = [Limit("ifd", min=low["limits"][place]), Limit("mutual", max=high["limits"][place_high])]
    isin = np.ones(40, dtype=bool)
    for found, first, last in ((low, 2 * place + 1, None), (high, 0, 2 * place_high + 1)):
        ranks, cells = unpacked(found["joint"]["ranks"]), np.array(found["joint"]["cells"])
        stop = len(cells) if last is None else last + 1
        before, inside, everything = cells[:first].sum(), cells[first:stop].sum(), cells.sum()
        start = before if found["better"] == "lower" else everything - before - inside
        isin &= (ranks >= start) & (ranks < start + inside)
    kept = filter_scores(scores, tmp_path / "kept.jsonl", limits=limits, scores_only=True).kept
    assert 0 < kept.sum() < 40
    assert np.array_equal(isin, kept)
    ranks = unpacked(page.score("nll_y")["joint"]["ranks"])
    best = np.sort(ranks[isin])[: math.ceil(0.4 * isin.sum())]
    shared = filter_scores(scores, tmp_path / "kept.jsonl", by="nll_y", keep=0.4, limits=limits, scores_only=True).kept
    assert np.array_equal(isin & np.isin(ranks, best), shared)
    labels = page.data["pairs"]["label"]
    of = dict(zip(labels, page.score("nll_y")["joint"]["of"], strict=True))
    assert all(of[str(row + 1)] == ranks[row] for row in np.flatnonzero(isin))


def preset_scores(folder: Path, count: int, **columns: np.ndarray) -> Path:
    """A score file with the columns of the preset."""
    generator = np.random.default_rng(1)
    values = {name: generator.normal(size=count) for name in SCORES}
    values |= {"mutual_novel": generator.normal(1, 1, count), "nll_end": generator.normal(11, 2, count)}
    values |= {"echo": generator.random(count), "refusal": generator.integers(0, 2, count)} | columns

    def row(number: int) -> dict[str, Any]:
        texts = {name: str(number + 1) for name, column in COLUMNS.items() if column.kind == "text"}
        found = {name: column[number].item() for name, column in values.items()}
        found = {name: None if value != value else value for name, value in found.items()}
        return (
            texts | dict.fromkeys(("tokens_x", "tokens_y", "other_script"), 9) | found | {"status": "ok", "flags": ""}
        )

    folder.mkdir(exist_ok=True)
    write_scores(folder / "scores.parquet", map(row, range(count)))
    return folder / "scores.parquet"


@pytest.mark.parametrize("ends", [True, False])
def test_the_recommended_conditions_keep_what_the_filter_keeps(tmp_path: Path, ends: bool) -> None:
    """Also for a model whose template has no end of turn, where the filter leaves `nll_end` out."""
    columns = {} if ends else {"nll_end": np.full(300, np.nan)}
    scores = preset_scores(tmp_path, 300, **columns)
    write_report(scores, tmp_path / "report.html", text=False)
    preset = Parsed(tmp_path / "report.html").data["preset"]
    kept = filter_scores(scores, tmp_path / "kept.jsonl", recommended=True, scores_only=True).kept
    assert 0 < kept.sum() < 300
    assert preset["kept"][0] == [kept.sum()]
    assert np.array_equal(unpacked(preset["met"], "u1").astype(bool), kept)
    assert preset["of"] == kept.tolist()
    assert ("nll_end <= 10" in preset["conditions"]) is ends


def test_the_conditions_of_a_folder_are_those_of_each_file(tmp_path: Path) -> None:
    """The filter leaves `nll_end` out where a file has none, so the page does too."""
    folder = tmp_path / "scores"
    counts = []
    for number, columns in enumerate(({}, {"nll_end": np.full(200, np.nan)})):
        file = preset_scores(folder, 200, **columns).rename(folder / f"{number}.parquet")
        kept = filter_scores(file, tmp_path / "kept.jsonl", recommended=True, scores_only=True).kept
        counts.append(int(kept.sum()))
    write_report(folder, tmp_path / "report.html", text=False)
    preset = Parsed(tmp_path / "report.html").data["preset"]
    assert preset["kept"][0] == [sum(counts)]
    assert preset["kept"][2] == counts  # equal sizes: in the order of the files


def test_many_files_are_listed_by_size_and_the_rest_is_one_group(tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    for number in range(LISTED + 3):
        preset_scores(folder, 5 + number).rename(folder / f"{number:02}.parquet")
    write_report(folder, tmp_path / "report.html", text=False)
    page = Parsed(tmp_path / "report.html")
    grouping = page.data["groupings"][2]
    assert grouping["labels"][0] == f"{LISTED + 2:02}.parquet"
    assert (grouping["labels"][LISTED], grouping["sizes"][LISTED]) == ("3 other files", 5 + 6 + 7)
    assert f"{LISTED + 2:02}.parquet 1" in page.data["pairs"]["label"]


def test_a_file_without_a_column_of_the_preset_does_not_offer_it(tmp_path: Path) -> None:
    scores = tmp_path / "old.jsonl"
    rows = [{"id": str(n), "mutual": n / 10, "nll_y_given_x": 1.0, "status": "ok", "reason": ""} for n in range(9)]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError):
        filter_scores(scores, tmp_path / "kept.jsonl", recommended=True, scores_only=True)
    write_report(scores, tmp_path / "report.html", text=False)
    assert Parsed(tmp_path / "report.html").data["preset"] is None


def test_many_rows_are_counted_jointly_over_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "JOINT", 100)
    scores = preset_scores(tmp_path, 300)
    write_report(scores, tmp_path / "report.html", text=False)
    page = Parsed(tmp_path / "report.html")
    assert (page.data["joint"]["rows"], page.data["joint"]["is_whole"]) == (100, False)
    kept = filter_scores(scores, tmp_path / "kept.jsonl", recommended=True, scores_only=True).kept
    assert page.data["preset"]["kept"][0] == [kept.sum()]  # exact all the same
    ranks = unpacked(page.score("mutual")["joint"]["ranks"])
    assert sorted(ranks.tolist()) == list(range(100))
