"""cyclic_consistency and relational_scores against their dense definitions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from main_kernels import cyclic_consistency, oracle, relational_scores

from .contract import Matrices, assert_contract, error, exact, matrices


@given(
    drawn=matrices(square=True),
    cross=st.sampled_from([0.0, 1.0, 0.3]),
    within=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_matches_the_oracle(drawn: Matrices, cross: float, within: float):
    query, key = drawn.draw()
    leaves = exact(query, key)
    options = {"cross": cross, "within": within}
    wide = [t.detach().to(torch.promote_types(t.dtype, torch.float32)).requires_grad_() for t in (query, key)]
    size = float(torch.cat(leaves).detach().square().sum(1).max())  # of the largest inner product
    got, want = cyclic_consistency(query, key, **options), oracle.cyclic_consistency(*leaves, **options)
    rough = dense(*wide, cross, within)
    assert_contract("value", got, rough, want, 8 * drawn.width * size**2)
    mine = torch.autograd.grad(got, (query, key))
    theirs = [g.to(query.dtype) for g in torch.autograd.grad(rough, wide)]
    for name, g, r, t in zip(("query", "key"), mine, theirs, torch.autograd.grad(want, leaves), strict=True):
        assert_contract(f"d_{name}", g, r, t, 8 * drawn.width * size**1.5)

    rows, true_rows = relational_scores(query, key), oracle.relational_scores(*leaves)
    gaps = wide[0] @ wide[0].T - wide[1] @ wide[1].T
    assert_contract("rows", rows, -gaps.square().mean(1), true_rows, 8 * drawn.width * size**2)


def dense(query, key, cross, within):
    s = query @ key.T
    return (cross * (s - s.T).square() + within * (query @ query.T - key @ key.T).square()).mean()


def test_gradcheck_in_float64():
    query, key = (torch.randn(7, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(lambda q, k: cyclic_consistency(q, k, cross=0.7, within=1.3), (query, key))
    assert gradcheck(relational_scores, (query, key))


def test_no_cancellation_where_the_sides_are_close():
    """Differences of 1e-4: the Gram form tr(QQᵀQQᵀ) - 2 tr(QQᵀKKᵀ) + tr(KKᵀKKᵀ) loses two digits and more."""
    query = torch.nn.functional.normalize(torch.randn(500, 64))
    key = query + 1e-4 * torch.randn(500, 64)
    for cross, within in ((1.0, 0.0), (0.0, 1.0)):
        want = float(oracle.cyclic_consistency(query, key, cross=cross, within=within))
        assert float(cyclic_consistency(query, key, cross=cross, within=within)) == pytest.approx(want, rel=1e-5)
    gram = (query.T @ query).square().sum() - 2 * (query.T @ key).square().sum() + (key.T @ key).square().sum()
    assert abs(float(gram) / 500**2 - want) > 0.01 * want
    assert error(relational_scores(query, key), oracle.relational_scores(query, key)) < 1e-5 * want


def test_perfect_consistency_is_zero():
    query = torch.randn(20, 8)
    assert cyclic_consistency(query, query).item() == 0
    assert not relational_scores(query, query).any()
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    turned = query.double() @ rotation
    assert cyclic_consistency(query.double(), turned, cross=0.0).item() < 1e-12 * 20 * 8


def test_autocast_changes_nothing_and_compiles():
    query, key = torch.randn(30, 8), torch.randn(30, 8)
    want = cyclic_consistency(query, key)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cyclic_consistency(query, key), want)
    compiled = torch.compile(cyclic_consistency, fullgraph=True, backend="aot_eager")
    assert error(compiled(query, key), want) < 1e-6


@pytest.mark.parametrize("weights", [{"cross": -1.0}, {"within": float("nan")}])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match=next(iter(weights))):
        cyclic_consistency(torch.randn(3, 2), torch.randn(3, 2), **weights)
