"""The benchmark of scores: corrupted pairs, cached passes, tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from main_align.data.pairs import Pair
from main_align.scoring.columns import lower_is_better
from main_align.scoring.scorer import Scorer

from bench.quality import corruptions
from bench.quality.contrast import contrast
from bench.quality.corruptions import GENERAL, KINDS, PARTS, Case, Row, build
from bench.quality.detection import Part, values_of
from bench.quality.detection_report import MARKS, write_page
from bench.quality.passes import PassCache
from tests.align.tiny_models import DEVICE, tiny_model_folder


def rows() -> list[Row]:
    plain = [
        Row(f"Name {n} colours of Rome.", "", f"The colours of number {n + 100} are red, green, blue and some more.")
        for n in range(30)
    ]
    return plain + [Row("Find the year.", f"It was built in {n}.", str(n)) for n in range(1900, 1908)]


def cases() -> list[Case]:
    return build(rows(), lambda texts: np.eye(len(texts), dtype=np.float32), (6, 6), (2, 2))


def test_each_base_row_gives_one_pair_of_each_kind() -> None:
    made = cases()
    assert [KINDS.index(case.kind) for case in made] == sorted(KINDS.index(case.kind) for case in made)
    bases = {part: {case.base for case in made if case.part == part} for part in PARTS}
    assert not bases["choosing"] & bases["reporting"]
    for kind in GENERAL:
        assert sum(case.kind == kind for case in made) == 12, kind
    good = {case.base: case.pair for case in made if case.kind == "good"}
    for case in made:
        if case.kind in GENERAL and case.kind != "good":
            assert case.pair.instruction == good[case.base].instruction
            assert case.pair.response != good[case.base].response
    assert {
        case.pair.id for case in made if case.kind == "echo" and case.pair.response != case.pair.instruction
    } == set()
    used = [{c.pair.response for c in made if c.kind == "refusal" and c.part == part} for part in PARTS]
    assert not used[0] & used[1]
    with pytest.raises(ValueError, match="too few"):
        build(rows(), lambda texts: np.eye(len(texts), dtype=np.float32), (60, 6), (2, 2))


def test_a_wrong_fact_differs_in_one_number_or_name() -> None:
    draw = corruptions.random.Random(0)
    wrong = corruptions._wrong_fact("When?", "It was in 1969 of course.", "", draw)
    assert wrong is not None
    assert wrong != "It was in 1969 of course."
    assert wrong.replace(wrong.split()[3], "1969") == "It was in 1969 of course."
    assert corruptions._wrong_fact("Who?", "It was by Ann.", "It was by Bob.", draw) == "It was by Bob."
    assert corruptions._wrong_fact("Who?", "no one", "no one else", draw) is None


def test_values_from_cached_passes_equal_the_scorer(tmp_path: Path) -> None:
    made = [case for case in cases() if case.kind in ("good", "echo", "random", "refusal", "truncated", "good_input")]
    scorer = Scorer(tiny_model_folder(tmp_path), device=DEVICE)
    PassCache(tmp_path / "passes", scorer, (1, 2)).run([case.pair for case in made])
    cache = PassCache(tmp_path / "passes", scorer, (1, 2))  # a later run finds all passes
    assert cache.passes.keys() == {case.pair.id for case in made}
    values = values_of(made, cache.passes)
    scored = scorer.score([case.pair for case in made])
    for name in ("mutual", "mutual_novel", "nll_end", "pmi_reverse", "echo", "copy_overlap"):
        wanted = np.array([row[name] if row[name] is not None else np.nan for row in scored], float)
        sign = -1 if lower_is_better(name) else 1
        np.testing.assert_allclose(sign * values[name], wanted, atol=1e-4, err_msg=name)
    part = Part(made, values, "reporting")
    assert part.auc("echo", "echo")["value"] == 1
    assert part.auc("mutual", "random", "mutual")["high"] == 0
    assert part.flagged("refusal")["recall"]["refusal"]["value"] == 1


def test_contrastive_pmi_is_that_of_naive_passes_and_resumes(tmp_path: Path) -> None:
    made = [case for case in cases() if case.part == "choosing" and case.kind in ("good", "neighbour", "good_input")]
    scorer = Scorer(tiny_model_folder(tmp_path), device=DEVICE)
    cache = PassCache(tmp_path / "passes", scorer, (1, 2))
    cache.run([case.pair for case in made])
    values, journal = values_of(made, cache.passes), tmp_path / "contrast.jsonl"
    blocks: list[int] = []
    result = contrast(made, cache.passes, values, scorer, journal, 2, lambda done, _: blocks.append(done))
    assert result["auc"]["random"]["neighbour"]["n"] == 2
    assert set(result["differences"]) == {
        f"{name} - {rival}" for name in ("random", "nearest") for rival in ("pmi_forward", "mutual")
    }
    x, y, logp = json.loads(journal.read_text().splitlines()[0])
    (row,) = scorer.score([Pair("0", 1, x, y)])
    assert logp == pytest.approx(-row["nll_y_given_x"] * row["tokens_y"], abs=1e-4)
    again = contrast(made, cache.passes, values, scorer, journal, 2, lambda done, _: blocks.append(-1))
    assert again == result
    assert -1 not in blocks


def test_the_kinds_that_score_the_system_prompt_hold_the_pairs_that_the_scorer_scores(tmp_path: Path) -> None:
    made = {case.pair.id: case.pair for case in cases()}
    scored = {name: pair for name, pair in made.items() if name.endswith("_scored")}
    assert len(scored) == 8
    scorer = Scorer(tiny_model_folder(tmp_path), device=DEVICE, score_system=True)
    wanted = scorer.score([made[name.removesuffix("_scored")] for name in scored])
    found = Scorer(tiny_model_folder(tmp_path), device=DEVICE).score(list(scored.values()))
    assert [row["mutual"] for row in found] == [row["mutual"] for row in wanted]


def test_an_auc_and_its_interval_by_hand() -> None:
    made = [Case("reporting", kind, base, None) for kind in ("good", "random") for base in range(4)]  # type: ignore[arg-type]
    part = Part(made, {"score": np.array([3.0, 4.0, 5.0, 2.0, 1.0, 2.0, 6.0, 0.0])}, "reporting")
    cell = part.auc("score", "random")
    assert (cell["value"], cell["n"]) == ((3 + 3 + 3 + 2.5) / 16, 4)
    assert cell["low"] < cell["value"] < cell["high"]


def test_the_page_has_the_tables_of_the_results(tmp_path: Path) -> None:
    results = json.loads((Path(__file__).parents[2] / "bench" / "results" / "detection.json").read_text())
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    write_page(results, page)
    committed = (Path(__file__).parents[2] / "docs" / "quality.md").read_text()
    tables = page.read_text().removeprefix("before\n").removesuffix("\nafter\n")
    assert "old" not in page.read_text()
    assert tables in committed
