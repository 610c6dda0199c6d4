"""The bank against the dense N x N definitions of its two scores, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from main_align.scoring.bank import Bank

TAU = 0.07


def states(n, d=24, seed=0, shared=0.7):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, d))
    x, y = (shared * common + rng.normal(size=(n, d)) + 3.0 for _ in range(2))
    return tuple((a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32) for a in (x, y))


def dense(x, y, mean_x, mean_y, tau=TAU):
    """(semantic, structural) of the pairs of a set that is its own bank, by the definitions."""
    q, k = (a.astype(np.float64) - m for a, m in ((x, mean_x), (y, mean_y)))
    q, k = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (q, k))
    s = q @ k.T / tau
    n = len(s)
    row, column = np.log(np.exp(s).sum(1)), np.log(np.exp(s).sum(0))
    semantic = np.log(n) + np.diag(s) - (row + column) / 2
    return semantic, -(((q @ q.T) - (k @ k.T)) ** 2).sum(1) / n


def means(x, y):
    return x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)


def test_members_match_the_dense_definition():
    x, y = states(200)
    semantic, structural = Bank(x, y, TAU).score(x, y, np.arange(200))
    wanted = dense(x, y, *means(x, y))
    np.testing.assert_allclose(semantic, wanted[0], atol=2e-5)
    np.testing.assert_allclose(structural, wanted[1], rtol=1e-5)


def test_a_pair_outside_the_bank_joins_its_own_partition():
    x, y = states(101)
    semantic, structural = Bank(x[:100], y[:100], TAU).score(x[100:], y[100:], np.array([-1]))
    wanted = dense(x, y, *means(x[:100], y[:100]))
    np.testing.assert_allclose(semantic, wanted[0][100:], atol=2e-5)
    np.testing.assert_allclose(structural, wanted[1][100:], rtol=1e-5)


def test_structural_does_not_cancel_where_both_sides_agree():
    x, _ = states(300, d=64)
    y = x + np.float32(1e-4) * states(300, d=64, seed=1)[0]
    _, structural = Bank(x, y, TAU).score(x, y, np.arange(300))
    np.testing.assert_allclose(structural, dense(x, y, *means(x, y))[1], rtol=5e-3)


def test_semantic_is_at_most_log_n_and_separates_aligned_from_shuffled():
    x, y = states(64, shared=3.0)
    other = np.roll(y, 1, axis=0)
    aligned = Bank(x, y, TAU).score(x, y, np.arange(64))[0]
    shuffled = Bank(x, other, TAU).score(x, other, np.arange(64))[0]
    assert aligned.max() <= np.log(64) + 1e-9
    assert aligned.mean() > 1 > 0 > shuffled.mean()


def test_a_bank_of_one_pair_gives_zero_scores():
    x, y = states(1)
    semantic, structural = Bank(x, y, TAU).score(x, y, np.zeros(1, np.int64))
    assert semantic == pytest.approx(0)
    assert structural == pytest.approx(0)


def test_choice_is_seeded_sorted_and_without_repeats():
    assert Bank.choose(5, 10, 0).tolist() == [0, 1, 2, 3, 4]
    chosen = Bank.choose(1000, 100, 3)
    assert chosen.dtype == np.int64
    assert len(set(chosen)) == 100
    assert (np.diff(chosen) > 0).all()
    assert chosen.max() < 1000
    assert chosen.tolist() == Bank.choose(1000, 100, 3).tolist()
    assert chosen.tolist() != Bank.choose(1000, 100, 4).tolist()


def test_wrong_shapes_are_refused_by_name():
    x, y = states(4)
    with pytest.raises(ValueError, match=r"\(4, 24\) and \(3, 24\)"):
        Bank(x, y[:3], TAU)
    with pytest.raises(ValueError, match="size"):
        Bank.choose(4, 0, 0)
