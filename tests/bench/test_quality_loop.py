"""The loop study: its pairs, its selections, its likelihoods, its statistics and its gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("peft")

from main_align.data.pairs import Pair
from main_align.models.encoding import PairEncoder
from main_align.models.forward import Forward

from bench.quality import loop_statistics, loop_study
from bench.quality.corruptions import Row
from bench.quality.loop_report import tables
from bench.quality.loop_statistics import (
    CRITERIA,
    GATE,
    better_default,
    change,
    correlations,
    gate_passes,
    keep_half,
    spearman,
)
from tests.align.tiny_models import byte_tokenizer, tiny_model

ROWS = 60
HEAD = {
    "settings": {
        "model": "m", "seeds": 1, "hidden": ROWS, "held_out": 4,
        "rank": 2, "layers": 1, "learning_rate": 1e-3, "batch": 2,
    },
    "machine": {
        "cpu": "c", "instruction_set": "AVX2", "threads": 1, "device": "cpu", "commit": "abc",
        "versions": {"torch": "2", "transformers": "5"},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_resamplings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_statistics, "RESAMPLINGS", 200)


@pytest.fixture
def loop() -> dict[str, Any]:
    """Return a loop of 60 pairs whose `mutual` knows the similarity and whose `forward_nll` knows nothing."""
    draw = np.random.default_rng(3)
    similarity = draw.random(ROWS)
    noise = {name: draw.random(ROWS).tolist() for name in CRITERIA}
    scores = noise | {"mutual": (similarity + 0.01 * draw.random(ROWS)).tolist()}
    record = {
        "part": "loop",
        "experiment": "one round",
        "seed": 0,
        "ids": [str(row) for row in range(ROWS)],
        "written": [f"do {row}" for row in range(ROWS)],
        "tokens_y": draw.integers(5, 60, ROWS).tolist(),
        "similarity": similarity.tolist(),
        "scores": scores,
    }
    record["written"][7] = record["similarity"][7] = record["scores"]["mutual"][7] = None
    return record


def arm(name: str, seed: int, true: list[float], neighbour: list[float]) -> dict[str, Any]:
    sums = {"nll": true, "nll_neighbour": neighbour, "tokens": [2] * len(true)}
    return {"part": "arms", "experiment": name, "seed": seed, "commit": "def", "facts": {"tokens": 9}} | sums


def test_the_three_sets_share_no_instruction_and_no_response(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("SEEDS", 3), ("HIDDEN", 5), ("HELD_OUT", 4)):
        monkeypatch.setattr(loop_study, name, size)
    text = " word" * loop_study.WORDS
    rows = [Row(f"task {number}", "", f"{number}{text}") for number in range(12)]
    rows += [Row("TASK 3!", "", f"again{text}"), Row("other", "", f"4{text}"), Row("short", "", "few words")]
    rows += [Row("with input", "input", f"in{text}"), Row("long", "", text * 20)]
    sets = loop_study.pairs_of(rows)
    pairs = [pair for each in sets for pair in each]
    assert [len(each) for each in sets] == [3, 5, 4]
    assert len({pair.instruction.casefold().strip("!") for pair in pairs}) == 12
    assert len({pair.response for pair in pairs}) == 12
    with pytest.raises(ValueError, match="11 rows fit, 12 are needed"):
        loop_study.pairs_of(rows[1:12])


def test_equal_values_share_their_rank() -> None:
    assert spearman(np.array([1.0, 2, 2, 9]), np.array([1.0, 5, 5, 6])) == pytest.approx(1)
    # ranks 1 2.5 2.5 4 and 4 1 2 3
    expected = np.corrcoef([1, 2.5, 2.5, 4], [4, 1, 2, 3])[0, 1]
    assert spearman(np.array([1.0, 2, 2, 9]), np.array([8.0, 1, 2, 3])) == pytest.approx(expected)


@pytest.mark.parametrize("order", ["random", *CRITERIA])
def test_every_selection_keeps_the_same_number_of_each_length(loop: dict[str, Any], order: str) -> None:
    lengths = np.sort(np.array(loop["tokens_y"])[keep_half(loop, order)])
    other = np.sort(np.array(loop["tokens_y"])[keep_half(loop, "random", 1)])
    assert len(lengths) == len(other)
    assert 7 not in keep_half(loop, order)
    assert np.abs(lengths - other).max() <= 12  # the width of a group


def test_a_selection_keeps_the_best_of_each_group(loop: dict[str, Any]) -> None:
    mutual = np.array([value or np.nan for value in loop["scores"]["mutual"]])
    kept = keep_half(loop, "mutual")
    dropped = [row for row in range(ROWS) if row not in kept and row != 7]
    assert mutual[kept].mean() > mutual[dropped].mean() + 0.3
    worst = keep_half(loop | {"scores": loop["scores"] | {"forward_nll": loop["scores"]["mutual"]}}, "forward_nll")
    assert not set(worst) & set(kept) or np.array(mutual)[worst].mean() < mutual[kept].mean() - 0.3


def test_a_criterion_that_knows_the_right_instruction_becomes_the_default(loop: dict[str, Any]) -> None:
    parts = correlations(loop)
    assert parts["mutual"]["value"] > 0.95
    assert parts["mutual"]["kept"] > 0.15
    assert better_default(parts) == "mutual"
    ignorant = loop | {"scores": loop["scores"] | {"mutual": loop["scores"]["pmi_forward"]}}
    assert better_default(correlations(ignorant)) is None


def test_the_gate_needs_every_run_a_clear_interval_and_all_seeds() -> None:
    base, better = [4.0, 4.1, 3.9, 4.0], [3.0, 3.2, 2.9, 3.0]
    runs = [arm("random", seed, base, base) for seed in range(2)]
    runs += [arm("oracle", seed, better, better) for seed in range(2)]
    assert gate_passes(runs, seeds=range(2))
    assert not gate_passes(runs[:3], seeds=range(2))
    assert not gate_passes([*runs[:3], arm("oracle", 1, [5.0] * 4, [5.0] * 4)], seeds=range(2))
    worse = [arm(name, run["seed"], run["nll"], run["nll_neighbour"]) for run in runs for name in GATE
             if run["experiment"] != name]  # fmt: skip
    assert not gate_passes(worse, seeds=range(2))


def test_a_higher_gap_is_better() -> None:
    runs = [arm("random", 0, [4.0] * 4, [5.0] * 4), arm("oracle", 0, [4.0] * 4, [6.0] * 4)]
    nll, gap = (change(runs, "oracle", name) for name in ("nll", "gap"))
    assert nll is not None
    assert (nll.mean, nll.verdict) == (0, 0)
    assert gap is not None
    assert (gap.mean, gap.verdict) == (pytest.approx(0.5), 1)
    assert change(runs, "seeds", "nll") is None


def test_sums_are_the_models_own_likelihoods() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model().eval()
    pairs = [Pair(str(n), n, "say " * n, "it is " * (5 - n)) for n in range(1, 5)]
    encoder = PairEncoder(tokenizer)
    sums, tokens = loop_study.nll_sums(Forward(model), encoder, pairs)
    for pair, value, count in zip(pairs, sums, tokens, strict=True):
        sequence = encoder.sequences(encoder.encode([(pair.instruction, pair.response)], [()])[0])[0]
        with torch.inference_mode():
            logits = model(torch.tensor([sequence.ids])).logits[0].double().log_softmax(-1)
        start, stop = sequence.second_span
        expected = -sum(float(logits[at - 1, sequence.ids[at]]) for at in range(start, stop))
        assert value == pytest.approx(expected, abs=2e-3)
        assert count == stop - start


def test_arms_differ_only_in_their_instructions(loop: dict[str, Any]) -> None:
    hidden = [Pair(str(row), row, f"hidden {row}", f"response {row}") for row in range(ROWS)]
    training = loop_study.Training.__new__(loop_study.Training)
    training.hidden, training.loop = hidden, loop
    written, oracle = training.chosen("random", 1), training.chosen("oracle", 1)
    assert [pair.response for pair in written] == [pair.response for pair in oracle]
    assert all(pair.instruction.startswith("do ") for pair in written)
    assert [replace(pair, instruction="") for pair in written] == [replace(pair, instruction="") for pair in oracle]
    assert training.chosen("seeds", 1) == []
    assert training.chosen("random", 2) != written


def test_the_tables_give_both_parts_and_the_verdicts(loop: dict[str, Any]) -> None:
    runs = [
        arm(name, seed, [4.0 - better] * 4, [5.0] * 4)
        for name, better in (("random", 0), ("oracle", 1))
        for seed in (0, 1)
    ]
    text = tables(HEAD, [loop, *runs])
    assert "By the rule, `mutual` replaces it." in text
    assert "59 of 60 pairs have a score" in text
    assert (
        "| the same responses, hidden instructions | 2 | 9 | 1.5000 ± 0.0000 | -0.5000 [-0.5000, -0.5000] ▲ |" in text
    )
