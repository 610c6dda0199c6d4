"""The bank against the dense definitions of its two scores, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from main_align.errors import UserError
from main_align.scoring import bank
from main_align.scoring.bank import Bank, PairStates, bank_candidates

TAU = 0.07


def states(n, d=24, seed=0, shared=0.7):
    """Pairs with different texts and uneven dimensions, as unit vectors."""
    rng = np.random.default_rng(seed)
    common, scale = rng.normal(size=(n, d)), rng.uniform(0.2, 5.0, d)
    x, y = (scale * (shared * common + rng.normal(size=(n, d)) + 3.0) for _ in range(2))
    x, y = ((a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32) for a in (x, y))
    return PairStates(x, y, np.arange(n), np.arange(n))


def rows(pairs, index):
    return PairStates(*(array[index] for array in pairs))


def dense(pairs, reference, tau=TAU):
    """(semantic, structural) of each pair, by the definitions."""

    def unit(side, of):
        side, of = side.astype(np.float64), of.astype(np.float64)
        side = (side - of.mean(0)) / of.std(0)
        return side / np.linalg.norm(side, axis=1, keepdims=True)

    q, k = unit(pairs.embed_x, reference.embed_x), unit(pairs.embed_y, reference.embed_y)
    bank_q, bank_k = unit(reference.embed_x, reference.embed_x), unit(reference.embed_y, reference.embed_y)
    semantic, structural = [], []
    for i in range(len(q)):
        others = (reference.text_x != pairs.text_x[i]) & (reference.text_y != pairs.text_y[i])
        own = q[i] @ k[i] / tau
        row, column = (
            np.log(np.exp(own) + np.exp(a @ b[others].T / tau).sum()) for a, b in ((q[i], bank_k), (k[i], bank_q))
        )
        semantic.append(np.log(others.sum() + 1) + own - (row + column) / 2)
        structural.append(np.corrcoef(bank_q[others] @ q[i], bank_k[others] @ k[i])[0, 1])
    return np.array(semantic), np.array(structural)


def check(pairs, reference):
    semantic, structural = Bank(reference, TAU).score(pairs)
    wanted = dense(pairs, reference)
    np.testing.assert_allclose(semantic, wanted[0], atol=3e-5)
    np.testing.assert_allclose(structural, wanted[1], atol=1e-5)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_members_match_the_dense_definition(monkeypatch, block):
    monkeypatch.setattr(bank, "BLOCK_ROWS", block)
    pairs = states(200)
    check(pairs, pairs)


def test_a_pair_outside_the_bank_joins_its_own_partition():
    pairs = states(101)
    check(rows(pairs, slice(100, None)), rows(pairs, slice(100)))


def test_pairs_that_share_a_text_are_no_negatives_of_each_other():
    pairs = states(40)
    repeated = rows(pairs, np.r_[np.arange(40), [3, 3, 3]])  # pair 3 and three copies of it
    check(repeated, repeated)
    alone, again = (Bank(p, TAU).score(rows(p, slice(40))).semantic for p in (pairs, repeated))
    assert abs(again[3] - alone[3]) < 0.3  # as a negative, each copy would cost about log 2
    one_side = pairs._replace(text_x=np.where(np.arange(40) < 5, 0, np.arange(40)))
    check(one_side, one_side)


def test_standardising_removes_a_dominant_dimension():
    pairs = states(64, shared=3.0)
    loud = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)
    x, y = pairs.embed_x.copy(), pairs.embed_y.copy()
    x[:, 0], y[:, 0] = 50 * loud
    quiet, noisy = (Bank(p, TAU).score(p).semantic.mean() for p in (pairs, pairs._replace(embed_x=x, embed_y=y)))
    assert noisy > 0.8 * quiet > 1


def test_embeddings_of_heads_are_compared_as_they_are():
    pairs = states(20)
    semantic, _ = Bank(pairs, TAU, standardised=False).score(pairs)
    s = pairs.embed_x.astype(np.float64) @ pairs.embed_y.T.astype(np.float64) / TAU
    row, column = (np.logaddexp.reduce(s, axis=axis) for axis in (1, 0))
    np.testing.assert_allclose(semantic, np.log(20) + np.diag(s) - (row + column) / 2, atol=3e-5)


def test_semantic_is_at_most_log_n_and_tells_aligned_from_shuffled():
    pairs = states(64, shared=3.0)
    swapped = pairs._replace(embed_y=np.roll(pairs.embed_y, 1, axis=0), text_y=np.roll(pairs.text_y, 1))
    aligned, shuffled = (Bank(pairs, TAU).score(p) for p in (pairs, swapped))
    assert aligned.semantic.max() <= np.log(64) + 1e-9
    assert aligned.semantic.mean() > 1 > 0 > shuffled.semantic.mean()
    assert aligned.structural.mean() > 0.5 > 0.1 > shuffled.structural.mean()


def test_a_bank_of_one_has_nothing_to_compare_with():
    pairs = states(1)
    semantic, structural = Bank(pairs, TAU).score(pairs)
    assert semantic == pytest.approx(0)
    assert np.isnan(structural).all()


def test_no_pairs_have_no_scores():
    assert [len(score) for score in Bank(states(4), TAU).score(states(0))] == [0, 0]


def test_candidates_are_seeded_spread_and_without_repeats():
    assert sorted(bank_candidates(5, 10, 0)) == [0, 1, 2, 3, 4]
    chosen = bank_candidates(40_000, 2000, 3)
    assert chosen.dtype == np.int64
    assert len(set(chosen)) == len(chosen) == 2100  # 5% more, as some cannot be scored
    assert len(bank_candidates(1000, 10, 3)) == 74
    assert chosen.min() >= 0
    assert chosen.max() < 40_000
    assert chosen.tolist() == bank_candidates(40_000, 2000, 3).tolist()
    assert set(chosen) != set(bank_candidates(40_000, 2000, 4))
    per_tenth = np.bincount(chosen // 4000, minlength=10)
    assert np.abs(per_tenth - 210).max() < 5 * 210**0.5


def test_candidates_of_many_pairs_are_those_of_the_smallest_hashes(monkeypatch):
    monkeypatch.setattr(bank, "HASHED_AT_A_TIME", 10_000)
    hashes = bank._hash(np.arange(1000), 7)
    monkeypatch.setattr(bank, "HASHED_AT_A_TIME", 77)
    assert bank_candidates(1000, 20, 7).tolist() == np.argsort(hashes)[:84].tolist()
    assert len(set(hashes)) == 1000


def test_a_score_does_not_depend_on_the_pairs_around_it():
    pairs, reference = states(150), Bank(states(300, seed=1), TAU)
    together = reference.score(pairs)
    for cut in (1, 7, 64, 100):
        starts = range(0, 150, cut)
        parts = [reference.score(rows(pairs, slice(start, start + cut))) for start in starts]
        for name in together._fields:
            found = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_allclose(found, getattr(together, name), atol=1e-6, err_msg=f"{name}, {cut} at a time")


def test_a_saved_bank_gives_the_same_scores_to_the_last_bit(tmp_path):
    pairs = states(50)
    made = Bank(rows(pairs, slice(30)), TAU, fingerprint={"model": "m", "dtype": "float32"})
    made.save(tmp_path / "bank.safetensors")
    loaded = Bank.load(tmp_path / "bank.safetensors")
    assert (len(loaded), loaded.temperature, loaded.fingerprint) == (30, TAU, made.fingerprint)
    for before, after in zip(made.score(pairs), loaded.score(pairs), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_bank_refuses_the_states_of_another_scorer():
    made = Bank(states(4), TAU, fingerprint={"model": "a", "digest": "1", "dtype": "float32", "batch_tokens": 9})
    made.check({"model": "./a", "digest": "1", "dtype": "float32", "batch_tokens": 8})
    with pytest.raises(UserError, match="dtype was 'float32', now 'bfloat16'"):
        made.check({"model": "a", "digest": "1", "dtype": "bfloat16"})
    with pytest.raises(UserError, match="digest was '1', now '2'"):
        made.check({"model": "a", "digest": "2", "dtype": "float32"})


@pytest.mark.parametrize("content", [b"", b"no bank at all", None])
def test_a_file_without_a_bank_is_refused(tmp_path, content):
    path = tmp_path / "bank.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"bank\.safetensors.*Bank.save"):
        Bank.load(path)


def test_wrong_shapes_are_refused_by_name():
    pairs = states(4)
    with pytest.raises(ValueError, match=r"\(4, 24\) and \(3, 24\)"):
        Bank(pairs._replace(embed_y=pairs.embed_y[:3]), TAU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, or a pretended one")
def test_a_bank_on_a_gpu_does_not_wait_for_queued_micro_batches(monkeypatch):
    pairs, streams, score = states(40), [], Bank._score_rows
    device = torch.device("cuda", 0)

    def watched(self, *arguments):
        streams.append(torch.accelerator.current_stream(device))
        return score(self, *arguments)

    monkeypatch.setattr(Bank, "_score_rows", watched)
    found = Bank(pairs, TAU, "cuda").score(pairs)
    assert streams[0] != torch.accelerator.current_stream(device)
    for values, wanted in zip(found, dense(pairs, pairs), strict=True):
        np.testing.assert_allclose(values, wanted, atol=3e-5)
