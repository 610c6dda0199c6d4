"""The scorer against four naive passes with full logits, and what it promises about batches."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from main_align.data.pairs import Pair, Turn
from main_align.errors import UserError
from main_align.models.forward import Forward
from main_align.models.load import load
from main_align.scoring.batching import default_batch_tokens
from main_align.scoring.columns import COLUMNS
from main_align.scoring.results import ARRAYS
from main_align.scoring.scorer import Scorer

from tests.align.tiny_models import DEVICE, tiny_model_folder
from tests.pretended_gpu.device import is_pretended, waits

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "seven",
    "dogs",
    "were",
    "asking",
    "why",
    "rivers",
    "run",
    "to",
    "sea",
]
LIKELIHOODS = ("nll_y_given_x", "nll_y", "nll_x_given_y", "nll_x")


def some_pairs(n=24, seed=0):
    rng = np.random.default_rng(seed)

    def text(longest):
        return " ".join(rng.choice(WORDS, rng.integers(1, longest)))

    pairs = [Pair(f"p{i}", i + 1, text(12), text(20)) for i in range(n)]
    context = (Turn("system", "be brief"), Turn("user", "hi"), Turn("assistant", "yes?"))
    return [*pairs, Pair("with context", n + 1, text(12), text(12), context)]


@pytest.fixture(scope="module", params=["llama", "mistral"])
def folder(request, tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("scorer"), request.param)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e-300])
def test_temperatures_without_an_inverse_are_refused(value):
    with pytest.raises(UserError, match=f"temperature: expected a positive number .*, got {value}"):
        Scorer("nothing", temperature=value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 5}, "model must be text or of type PathLike or of type LoadedModel, got 5"),
        ({"batch_tokens": "x"}, "batch_tokens must be a whole number or null, got 'x'"),
        ({"max_length": 5.5}, "max_length must be a whole number or null, got 5.5"),
        ({"temperature": "x"}, "temperature must be a number, got 'x'"),
        ({"truncate": "no"}, "truncate must be true or false, got 'no'"),
        ({"heads": 5}, "heads must be .*, got 5"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        Scorer(**({"model": "nothing"} | arguments))


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        (5, {}, "pairs are a list of records, a data frame or a dict of lists, not int"),
        ("text", {}, "pairs are records, not text"),
        ([("a", "b")], {"fields": "prompt"}, "fields must be of type Fields, got 'prompt'"),
        ([("a", "b")], {"bank": 5}, "bank must be of type Bank or null, got 5"),
    ],
)
def test_pairs_and_options_of_a_wrong_type_are_refused(folder, pairs, options, message):
    with pytest.raises(TypeError, match=message):
        Scorer(folder).score(pairs, **options)


def test_a_ray_data_set_is_left_to_its_workers(folder):
    lazy = type("Dataset", (), {"__module__": "ray.data.dataset", "__len__": None})()
    with pytest.raises(
        TypeError, match=r"give main_align.ray.ScoreStage to its map_batches, or its rows, .take_all\(\)"
    ):
        Scorer(folder).score(lazy)


@pytest.mark.parametrize("name", ["batch_tokens", "bank", "max_length"])
@pytest.mark.parametrize("value", [0, -5])
def test_numbers_below_one_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        Scorer(**{name: value})


def test_a_gpu_gets_more_tokens_at_once(folder):
    assert [default_batch_tokens(torch.device(name)) for name in ("cpu", "cuda", "cuda:1")] == [2048, 16384, 16384]
    default = Scorer(folder, device=DEVICE)
    assert default.fingerprint["batch_tokens"] == default.batch_tokens == default_batch_tokens(default.device)
    assert Scorer(folder, device=DEVICE, batch_tokens=7).batch_tokens == 7


@pytest.fixture(scope="module")
def scorer(folder):
    return Scorer(folder, device=DEVICE, batch_tokens=700)


def naive_tokens(folder, scorer, pairs):
    """Yield (encoded pair, log p of each token of y given x, x, x given y, y), by four passes of the plain model."""
    model = load(folder, device=DEVICE).model
    d = scorer.encoder
    for pair in pairs:
        (encoded,) = d.encode([(pair.instruction, pair.response)], [pair.context])
        logps = []
        for sequence in d.sequences(encoded):
            for ids, (a, b) in (
                (sequence.ids, sequence.second_span),
                (sequence.ids[: sequence.first_span[1]], sequence.first_span),
            ):
                with torch.inference_mode():
                    logp = model(torch.tensor([ids], device=DEVICE)).logits[0].double().log_softmax(-1).cpu()
                at = torch.arange(a, b)
                logps.append(logp[at - 1, torch.tensor(ids)[at]].numpy())
        yield encoded, *logps


def naive(folder, scorer, pairs):
    """-log p per token, by four passes of the plain model, one sequence at a time."""
    return np.array(
        [
            [-side.mean() for side in (y_given_x, y, x_given_y, x)]
            for _, y_given_x, x, x_given_y, y in naive_tokens(folder, scorer, pairs)
        ]
    )


def numbers(rows, names=LIKELIHOODS):
    return np.array([[row[name] for name in names] for row in rows])


def test_scores_match_four_naive_passes(folder, scorer):
    pairs = some_pairs()
    rows = scorer.score(pairs)
    assert len(scorer.prepare(pairs).micro_batches) > 3
    assert [row["id"] for row in rows] == [pair.id for pair in pairs]
    assert all(row["status"] == "ok" and list(row) == list(COLUMNS) for row in rows)
    np.testing.assert_allclose(numbers(rows), naive(folder, scorer, pairs), rtol=0, atol=1e-5)


def test_copied_tokens_and_the_end_of_turn_against_naive_passes(folder, scorer):
    x = "the cat sat on a mat while seven dogs were asking why"
    pairs = [*some_pairs(3), Pair("echo", 9, x, f"rivers run {x}")]
    rows = scorer.score(pairs)
    for row, (encoded, y_given_x, x, x_given_y, y) in zip(rows, naive_tokens(folder, scorer, pairs), strict=True):
        copied = [
            [
                any(
                    ids[start : start + 4] == other[at : at + 4]
                    for start in range(max(0, place - 3), min(place + 1, len(ids) - 3))
                    for at in range(len(other) - 3)
                )
                for place in range(len(ids))
            ]
            for ids, other in ((encoded.y, encoded.x), (encoded.x, encoded.y))
        ]
        weight = min(1, 2 - 2 * sum(copied[1]) / len(copied[1]))
        novel = sum(
            value * (weight if place < len(is_copied) and is_copied[place] else 1) / (2 * math.sqrt(len(ratio)))
            for ratio, is_copied in zip((y_given_x - y, x_given_y - x), copied, strict=True)
            for place, value in enumerate(ratio)
        )
        assert row["mutual_novel"] == pytest.approx(novel, abs=1e-5)
        end = y_given_x[len(encoded.y) :]
        assert row["nll_end"] == (pytest.approx(-end.sum(), abs=1e-5) if len(end) else None)
    assert abs(rows[-1]["mutual_novel"] - rows[-1]["mutual"]) > 1e-3


def test_a_score_does_not_depend_on_its_batch(folder, scorer):
    pairs = some_pairs()
    together = numbers(scorer.score(pairs))
    alone = np.vstack([numbers(scorer.score([pair])) for pair in pairs])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    other = numbers(Scorer(folder, device=DEVICE, batch_tokens=10**6).score(pairs))
    np.testing.assert_allclose(together, other, rtol=0, atol=1e-5)


def test_embeddings_have_not_seen_the_other_side(scorer):
    a, b = some_pairs(2)[:2]
    mixed = [a, Pair("m", 3, a.instruction, b.response), Pair("n", 4, b.instruction, a.response)]
    window = scorer.prepare(mixed)
    got = {}
    for result in scorer.run(window, window.micro_batches):
        for place, row in enumerate(result.rows.tolist()):
            got[row] = result.embed_x[place], result.embed_y[place]
    np.testing.assert_allclose(got[0][0], got[1][0], atol=1e-6)  # one x, two responses
    np.testing.assert_allclose(got[0][1], got[2][1], atol=1e-6)  # one y, two instructions
    assert np.abs(got[0][0] - got[2][0]).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(got[0][0]), 1, atol=1e-5)


def test_pooled_states_are_the_mean_over_the_content(folder, scorer):
    (pair,) = some_pairs(1)[:1]
    (encoded,) = scorer.encoder.encode([(pair.instruction, pair.response)], [()])
    forward, _ = scorer.encoder.sequences(encoded)
    ids = torch.tensor([forward.ids], device=DEVICE)
    with torch.inference_mode():
        states = load(folder, device=DEVICE).model.model(ids).last_hidden_state[0].cpu()
    start = forward.first_span[0]
    mean = states[start : start + len(encoded.x)].mean(0)
    window = scorer.prepare([pair])
    (result,) = scorer.run(window, window.micro_batches)
    np.testing.assert_allclose(result.embed_x[0], (mean / mean.norm()).numpy(), atol=1e-5)


def test_rows_that_cannot_be_scored_have_nulls_and_a_line(scorer):
    good = {"instruction": "why?", "response": "because."}
    rows = scorer.score([good, {"instruction": "", "response": "x"}, {"text": "?"}, good])
    assert [row["status"] for row in rows] == ["ok", "empty_instruction", "missing_field", "ok"]
    for number, row in enumerate(rows[1:3], 2):
        assert str(number) in row["reason"]
        assert all(row[name] is None for name in COLUMNS if name not in ("id", "status", "reason"))
    assert rows[0] | {"id": ""} == rows[3] | {"id": ""}


def test_no_pairs_give_no_rows(scorer):
    assert scorer.score([]) == []
    assert scorer.score([{"instruction": "", "response": ""}])[0]["semantic"] is None


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_gpu_has_the_next_micro_batches_before_a_result_is_read(scorer, monkeypatch, kind):
    window = scorer.prepare(some_pairs())
    wanted = list(scorer.run(window, window.micro_batches))
    done, submit = [], Forward.submit

    class Slow:
        """Takes as long as three other things that the host could do."""

        def __init__(self, submitted):
            self.number, self.submitted, self.looks = done.count("submit"), submitted, 0
            done.append("submit")

        def is_done(self):
            self.looks += 1
            return kind == "cpu" or self.looks > 3

        def result(self):
            done.append(self.number)
            return self.submitted.result()

    monkeypatch.setattr(Forward, "submit", lambda self, sequences: Slow(submit(self, sequences)))
    monkeypatch.setattr(Scorer, "device", torch.device(kind))
    spare = iter("steps")

    def meanwhile():
        done.append(next(spare, "none"))
        return done[-1] != "none"

    results = []
    for result in scorer.run(window, window.micro_batches, meanwhile):
        results.append(result)
        done.append("yield")
    count = len(window.micro_batches)
    assert count > 3
    if kind == "cpu":
        assert done == [what for number in range(count) for what in ("submit", number, "yield")]
    else:
        begun = ["submit", "submit", "submit", "s", "t", "e", 0, "yield", "submit", "p", "s", "none", 1, "yield"]
        assert done[: len(begun)] == begun
        assert [what for what in done if isinstance(what, int)] == list(range(count))
    for found, expected in zip(results, wanted, strict=True):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.skipif(not is_pretended(), reason="a pretended GPU counts what the host waits for")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_micro_batch_is_queued_without_waiting_for_the_gpu(folder, dtype):
    scorer = Scorer(folder, device=DEVICE, batch_tokens=700, dtype=dtype)
    window = scorer.prepare(some_pairs())
    sequences = [s for row in window.micro_batches[1].rows for s in scorer.encoder.sequences(window.encoded[row])]
    scorer.forward(sequences)
    waits()
    submitted = scorer.forward.submit(sequences)
    assert waits() == {}
    assert submitted.is_done()
    submitted.result()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
              RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")]
)  # fmt: skip
def test_out_of_memory_splits_the_micro_batch(scorer, monkeypatch, error):
    pairs = some_pairs(6)
    wanted = scorer.score(pairs)
    window = scorer.prepare(pairs)
    largest = max(2 * scorer.encoder.length(e) for e in window.encoded)
    states, sizes = Forward.states, []

    def scarce(self, packing):
        sizes.append(len(packing.ids))
        if sizes[-1] >= largest:  # so that the longest pair does not fit even alone
            raise error
        return states(self, packing)

    monkeypatch.setattr(Forward, "states", scarce)
    rows = scorer.score(pairs)
    assert max(sizes) > largest
    failed = [row for row in rows if row["status"] == "out_of_memory"]
    scored = [(row, want) for row, want in zip(rows, wanted, strict=True) if row["status"] == "ok"]
    assert failed
    assert scored
    for row in failed:
        line = next(pair.line for pair in pairs if pair.id == row["id"])
        assert f"line {line}:" in row["reason"]
        assert row["nll_y"] is None
    got, want = (numbers(rows) for rows in zip(*scored, strict=True))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_other_errors_are_not_swallowed(scorer, monkeypatch):
    def broken(self, packing):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Forward, "states", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        scorer.score(some_pairs(1))


def test_non_finite_states_have_no_score(scorer, monkeypatch):
    pairs = some_pairs(4)
    states = Forward.states

    def poisoned(self, packing):
        hidden = states(self, packing).clone()
        hidden[-3:] = math.nan
        return hidden

    monkeypatch.setattr(Forward, "states", poisoned)
    rows = scorer.score(pairs)
    bad = [row for row in rows if row["status"] == "non_finite"]
    assert 0 < len(bad) < len(rows)
    assert all(row["mutual"] is None and "NaN" in row["reason"] for row in bad)


def test_truncated_pairs_are_scored_with_their_own_status(folder):
    pairs = [Pair("a", 1, "cat " * 100, "dog " * 100), Pair("b", 2, "cat", "dog")]
    refused = Scorer(folder, device=DEVICE, max_length=100).score(pairs)
    assert [row["status"] for row in refused] == ["too_long", "ok"]
    cut = Scorer(folder, device=DEVICE, max_length=100, truncate=True).score(pairs)
    assert [row["status"] for row in cut] == ["truncated", "ok"]
    assert cut[0]["nll_y"] > 0
    assert "line 1" in cut[0]["reason"]


def test_the_default_length_is_that_of_the_model(scorer):
    assert scorer.max_length == 512
    assert scorer.score([Pair("a", 1, "x" * 300, "y" * 300)])[0]["status"] == "too_long"


def test_a_bank_smaller_than_the_data_still_scores_every_pair(folder):
    pairs = some_pairs()
    rows = Scorer(folder, device=DEVICE, bank=8).score(pairs)
    again = Scorer(folder, device=DEVICE, bank=8).score(pairs)
    assert rows == again
    assert all(math.isfinite(row["semantic"]) and -1 <= row["structural"] <= 1 for row in rows)
    assert max(row["semantic"] for row in rows) <= math.log(9)
    assert rows != Scorer(folder, device=DEVICE, bank=8, seed=1).score(pairs)


def test_bfloat16_stays_near_float32(folder, scorer):
    pairs = some_pairs()
    in_half = Scorer(folder, device=DEVICE, dtype="bfloat16")
    exact, half = (numbers(s.score(pairs)) for s in (scorer, in_half))
    assert 0 < np.abs(exact - half).max() < 0.2


def test_the_fingerprint_follows_what_changes_a_score(folder, scorer):
    same = Scorer(folder, device=DEVICE, batch_tokens=700).fingerprint
    assert same == scorer.fingerprint == json.loads(json.dumps(same))
    for change in (
        {"dtype": "bfloat16"}, {"batch_tokens": 701}, {"max_length": 99}, {"truncate": True},
        {"bank": 7}, {"seed": 1}, {"temperature": 0.1},
    ):  # fmt: skip
        settings = {"batch_tokens": 700} | change
        assert Scorer(folder, device=DEVICE, **settings).fingerprint != same, change


def test_progress_counts_every_pair(scorer):
    pairs, seen = some_pairs(), []
    scorer.score(pairs, progress=lambda n, tokens: seen.append((n, tokens)))
    packs = scorer.prepare(pairs).micro_batches
    assert seen == [(len(pack.rows), pack.tokens) for pack in packs]
    assert sum(n for n, _ in seen) == len(pairs)


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"bank": 0}, {"batch_tokens": 0}, {"temperature": 0.0}])
def test_wrong_settings_are_refused_by_name(folder, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Scorer(folder, **wrong)


def preferences(instructions=4, responses=3):
    """Instructions with several responses each, in mixed order; some have a context, and one response comes twice."""
    texts = [pair for pair in some_pairs(instructions * responses, seed=3)[:-1] if pair.response]
    contexts = ((), (Turn("system", "be brief and kind"), Turn("user", "hi"), Turn("assistant", "yes?")))
    pairs = [
        Pair(f"p{number}", number + 1, texts[i].instruction, texts[number].response, contexts[i % 2])
        for number, i in enumerate(i for _ in range(responses) for i in range(instructions))
    ]
    return [
        *pairs,
        Pair("y", 98, "why?", pairs[0].response),
        Pair("again", 99, pairs[0].instruction, pairs[0].response),
    ]


def test_shared_prefixes_are_computed_once_with_the_scores_of_naive_passes(folder, scorer):
    pairs = preferences()
    ran, states = [], Forward.states
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "states", lambda self, packing: ran.append(len(packing.ids)) or states(self, packing))
        rows = scorer.score(pairs)
    batches = scorer.prepare(pairs).micro_batches
    assert len(batches) > 1
    assert ran == [batch.tokens for batch in batches]
    every = [scorer.encoder.sequences(pair) for pair in scorer.prepare(pairs).encoded]
    in_full = sum(len(sequence.ids) for both in every for sequence in both)
    assert sum(batch.tokens + batch.shared_tokens for batch in batches) == in_full
    assert sum(ran) < 0.85 * in_full
    np.testing.assert_allclose(numbers(rows), naive(folder, scorer, pairs), rtol=0, atol=1e-5)


def test_scores_and_embeddings_do_not_depend_on_what_is_shared(folder, scorer):
    pairs = preferences()
    apart = Scorer(folder, device=DEVICE, batch_tokens=700)
    apart.forward.shares_prefixes = False
    shared, unshared = scorer.measure(pairs), apart.measure(pairs)
    names = ("mutual", "mutual_novel", "nll_end")
    np.testing.assert_allclose(
        *(numbers(m.rows(None), (*LIKELIHOODS, *names)) for m in (shared, unshared)), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(shared.embed_x, unshared.embed_x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(shared.embed_y, unshared.embed_y, rtol=0, atol=1e-5)
    alone = np.vstack([numbers(scorer.score([pair])) for pair in pairs])
    np.testing.assert_allclose(numbers(shared.rows(None)), alone, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_smollm2_matches_four_naive_passes_and_each_pair_alone():
    scorer = Scorer(device=DEVICE)
    pairs = [
        Pair("a", 1, "What is the capital of France?", "The capital of France is Paris."),
        Pair("b", 2, "Add 2 and 3.", "5"),
        Pair("c", 3, "Write a haiku about rain.", "Rain on the old roof,\nquiet drums."),
    ]
    rows = scorer.score(pairs)
    np.testing.assert_allclose(numbers(rows), naive("smollm2", scorer, pairs), rtol=0, atol=1e-5)
    alone = np.vstack([numbers(scorer.score([pair])) for pair in pairs])
    np.testing.assert_allclose(numbers(rows), alone, rtol=0, atol=1e-5)
    wrong = Pair("d", 4, pairs[0].instruction, pairs[2].response)
    assert rows[0]["mutual"] > scorer.score([wrong])[0]["mutual"]


def test_the_system_prompt_is_scored_with_the_instruction_on_request(folder):
    turns = (Turn("user", "hi"), Turn("system", "be brief"), Turn("assistant", "yes?"))
    joined = Pair("a", 1, "be brief\n\nname a prime", "two", context=(turns[0], turns[2]))
    apart = Pair("a", 1, "name a prime", "two", context=turns)
    plain, together = (Scorer(folder, device=DEVICE, score_system=wanted) for wanted in (False, True))
    (expected,) = plain.score([joined])
    assert together.score([apart]) == [expected]
    assert plain.score([apart]) != [expected]
    assert together.fingerprint != plain.fingerprint  # so a job does not resume with the other setting
