"""The quality study runs from pairs to plots with a tiny model, and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from main_align.data.pairs import Pair
from main_align.scoring.bank import Bank, PairStates

from tests.align import forked
from tests.align.tiny_models import cpu_only, tiny_model_folder

pytest.importorskip("trl")
pytest.importorskip("peft")

from bench.quality import cleaning, compare, experiments, measures, pairs, results, study

ROOT = Path(__file__).parents[2]


def run_study(folder: Path, *options: str) -> str:
    small = {"--train": "8", "--batch": "4", "--epochs": "1", "--layers": "1", "--rank": "2", "--corruptions": "1"}
    paths = {"--model": folder / "tiny-llama", "-o": folder / "out.json", "--page": folder / "page.md"}
    given = [str(item) for pair in (small | paths).items() for item in pair]
    command = [str(folder / "seeds.jsonl"), *given, "--seeds", "0", *options]
    return forked.run(study.main, command, log=folder / "study.log")


@cpu_only("slow, and independent of the device")
def test_the_study_runs_and_resumes(tmp_path: Path) -> None:
    tiny_model_folder(tmp_path)
    tasks = [
        {"id": f"t{i}", "instruction": f"Count to {i}.", "instances": [{"input": "", "output": "one, " * (1 + i % 5)}]}
        for i in range(14)
    ]
    (tmp_path / "seeds.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    (tmp_path / "none.jsonl").write_text("")
    examples = ("--examples", str(tmp_path / "none.jsonl"))

    assert "[1/2] cleaning" in run_study(tmp_path, *examples, "--parts", "cleaning")
    assert "[3/20] terms: untrained" in run_study(tmp_path, *examples)  # finished runs are not repeated

    runs = {(run["part"], run["experiment"]): run for run in json.loads((tmp_path / "out.json").read_text())["runs"]}
    assert len(runs) == 20
    orders = {
        run["facts"]["order"]
        for (_, name), run in runs.items()
        if name in experiments.EXPERIMENTS and experiments.REPEAT not in experiments.EXPERIMENTS[name]
    }
    assert len(orders) == 1  # the same pairs in the same order in every experiment
    assert runs["terms", "full"]["facts"]["tokens"] == runs["terms", "both"]["facts"]["tokens"]
    assert runs["terms", "semantic"]["metrics"]["retrieval_xy_head"] >= 0
    assert runs["kept", "truth"]["facts"]["corrupted_left"] == 0
    assert runs["kept", "mutual"]["facts"]["steps"] == runs["kept", "everything"]["facts"]["steps"]
    assert "| plain SFT |" in (tmp_path / "page.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {"out_terms.png", "out_cleaning.png", "out_kept.png"}


@pytest.mark.parametrize("hard", [False, True])
def test_a_fraction_of_the_pairs_gets_another_response(hard: bool) -> None:
    some = [Pair(str(i), i, f"x{i}", f"y{i % 7}") for i in range(20)]
    nearest = pairs.nearest_neighbours(some, np.eye(20, dtype=np.float32)) if hard else None
    partner = pairs.draw_partners(some, 0.3, 0, nearest)
    changed = [row for row in range(20) if partner[row] != row]
    assert len(changed) == 6
    swapped = pairs.swap_responses(some, partner)
    assert all((swapped[row].response != some[row].response) == (row in changed) for row in range(20))


def test_detection_ranks_the_lowest_values() -> None:
    good, corrupted = np.array([0.1, 0.9, 0.3, 0.2, 0.8]), np.array([True, False, False, True, False])
    assert cleaning.detection(good, corrupted) == {"auc": 1.0, "found": 1.0, "average_precision": 1.0}
    late = cleaning.detection(-good, corrupted)
    assert late["auc"] == 0.0
    assert late["found"] == 0.0
    assert late["average_precision"] == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert cleaning.keep_best(good.tolist(), 0.4) == [1, 2, 4]


def test_the_semantic_score_equals_that_of_the_bank_on_centred_states() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 9, 5)).astype(np.float32)
    ours = measures.semantic_matrix(measures.cosine_matrix(x, y)).diagonal()
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x - x.mean(0), y - y.mean(0))]
    pairs = PairStates(*unit, np.arange(9), np.arange(9))
    theirs, _ = Bank(pairs, measures.TEMPERATURE, standardised=False).score(pairs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_verdict_requires_pairs_and_seeds_to_agree() -> None:
    def run(name: str, seed: int, forward: list[float]) -> results.Run:
        likelihoods = [[-value, -2.0, -2.0, -2.0] for value in forward]
        ones = [[1, 1]] * len(forward)
        same = {"semantic": [1.0] * 4, "semantic_hard": [0.0] * 4, "hit_xy": [1] * 4, "hit_yx": [1] * 4}
        kept = {"logp": likelihoods, "logp_hard": likelihoods, "tokens": ones, "tokens_hard": ones} | same
        return {"experiment": name, "seed": seed, "pairs": kept, "metrics": measures.summary(kept)}

    plain = [run("sft", seed, [1.0, 2.0, 3.0, 4.0]) for seed in (0, 1)]
    better = [run("better", seed, [0.9, 1.8, 2.7, 3.9]) for seed in (0, 1)]
    torn = [run("torn", 0, [0.9, 1.8, 2.7, 3.9]), run("torn", 1, [1.05, 2.05, 3.05, 4.05])]
    table = compare.differences([*plain, *better, *torn], plain="sft", metrics=["nll_forward"])
    assert table.change("better", "nll_forward").mean == pytest.approx(-0.175)
    assert table.change("better", "nll_forward").verdict == 1
    assert table.change("torn", "nll_forward").verdict == 0


def test_other_settings_are_an_error(tmp_path: Path) -> None:
    first = results.ResultsFile(tmp_path / "r.json", {"rank": 2})
    first.add({"part": "terms", "experiment": "sft", "seed": 0})
    assert results.ResultsFile(tmp_path / "r.json", {"rank": 2}).find("terms", "sft", 0)
    with pytest.raises(SystemExit, match="rank"):
        results.ResultsFile(tmp_path / "r.json", {"rank": 4})
