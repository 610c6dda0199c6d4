"""info_nce, pair_scores and row_logsumexp against the float64 oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from main_kernels import info_nce, oracle, pair_scores, row_logsumexp
from main_kernels.sweep import plan

from .contract import Matrices, assert_contract, error, exact, largest_logit, matrices


def scores(query, key, scale):
    wide = torch.promote_types(query.dtype, torch.float32)
    product = query.float() @ key.float().T if query.dtype == torch.float16 else query @ key.T
    return product.to(wide) * scale


def dense(query, key, scale, direction, reduction):
    s = scores(query, key, scale)
    by_query, by_key = s.logsumexp(1) - s.diagonal(), s.logsumexp(0) - s.diagonal()
    loss = {"query": by_query, "key": by_key, "both": (by_query + by_key) / 2}[direction]
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


def check(drawn: Matrices, *, temperature, learnable, direction, reduction, workspace):
    query, key = drawn.draw()
    leaves = [query, key]
    logit_scale = None
    scale = 1 / temperature
    if learnable:
        logit_scale = torch.tensor(-math.log(temperature), requires_grad=True)
        leaves.append(logit_scale)
        scale = logit_scale.clamp(0, math.log(100)).exp()
    shape = {"direction": direction, "reduction": reduction}
    options = {"temperature": temperature, "logit_scale": logit_scale, **shape}
    got = info_nce(query, key, workspace=workspace, **options)
    true_leaves = exact(*leaves)
    true_options = {**options, "logit_scale": true_leaves[2] if learnable else None}
    want = oracle.info_nce(*true_leaves[:2], **true_options)
    rough = dense(query, key, scale, **shape)
    largest = largest_logit(scores(query.double(), key.double(), scale))
    if reduction == "sum":
        largest *= drawn.rows
    assert_contract("loss", got, rough, want, largest)

    up = torch.randn(got.shape, generator=torch.Generator().manual_seed(drawn.seed))
    mine = torch.autograd.grad(got, leaves, up.to(got.dtype))
    true = torch.autograd.grad(want, true_leaves, up.double())
    theirs = torch.autograd.grad(rough, leaves, up.to(rough.dtype))
    terms = (
        float(up.abs().max()) * float(torch.as_tensor(scale).detach()) * (1 / drawn.rows if reduction == "mean" else 1)
    )
    bounds = [
        terms * float(key.detach().abs().max()),
        terms * float(query.detach().abs().max()),
        largest * drawn.rows,
    ]
    for name, g, r, t, bound in zip(("query", "key", "logit_scale"), mine, theirs, true, bounds, strict=False):
        assert_contract(f"d_{name}", g, r, t, bound)


@given(
    drawn=matrices(square=True),
    temperature=st.sampled_from([0.005, 0.07, 1.0, 10.0]),
    learnable=st.booleans(),
    direction=st.sampled_from(["both", "query", "key"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    workspace=st.sampled_from([0, 1 << 28]),
)
def test_info_nce_matches_the_oracle(backend, drawn, **options):
    if backend == "cpu" and drawn.dtype == torch.float64:
        drawn = Matrices(**{**drawn.__dict__, "dtype": torch.float32})
    check(drawn, **options)


@pytest.mark.parametrize("workspace", [0, 1 << 28])
@pytest.mark.parametrize("direction", ["both", "query"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_chunks_in_the_real_compute_dtype(backend, dtype, direction, workspace, monkeypatch):
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    drawn = Matrices(700, 700, 64, dtype, 0.3, False, 5)
    assert plan.make_plan(700, 700, 64, dtype) == plan.Plan(dtype, 512)
    check(drawn, temperature=0.5, learnable=False, direction=direction, reduction="mean", workspace=workspace)


def test_one_pair_has_no_loss(backend):
    query, key = torch.randn(1, 5, requires_grad=True), torch.randn(1, 5)
    loss = info_nce(query, key)
    loss.backward()
    assert loss.item() == 0
    assert not query.grad.any()


def test_two_pairs_by_hand(backend):
    query = torch.eye(2)
    loss = info_nce(query, query, temperature=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)


def test_logit_scale_is_clamped(backend):
    query, key = torch.randn(9, 4), torch.randn(9, 4)
    for value in (-3.0, 9.0):
        logit_scale = torch.tensor(value, requires_grad=True)
        loss = info_nce(query, key, logit_scale=logit_scale)
        loss.backward()
        at_limit = info_nce(query, key, logit_scale=torch.tensor(min(max(value, 0.0), math.log(100))))
        assert loss.item() == at_limit.item()
        assert logit_scale.grad.item() == 0


@given(drawn=matrices(square=True), temperature=st.sampled_from([0.07, 1.0]))
def test_pair_scores_match_the_oracle(backend, drawn, temperature):
    if backend == "cpu" and drawn.dtype == torch.float64:
        drawn = Matrices(**{**drawn.__dict__, "dtype": torch.float32})
    query, key = drawn.draw()
    got = pair_scores(query, key, temperature=temperature)
    want = oracle.pair_scores(query, key, temperature=temperature)
    s = scores(query, key, 1 / temperature).detach()
    own = s.diagonal()
    rough = (own - s.logsumexp(1), own - s.logsumexp(0))
    rough = (*rough, math.log(drawn.rows) + (rough[0] + rough[1]) / 2)
    for name, g, r, t in zip(got._fields, got, rough, want, strict=False):
        assert_contract(name, g, r, t, largest_logit(s))
    tolerance = 1e-5 * (1 + float(s.abs().max()))
    wide = scores(query.double(), key.double(), 1 / temperature)
    for got_rank, matrix in ((got.rank_query, wide), (got.rank_key, wide.T)):
        mine = matrix.diagonal()[:, None]
        assert (got_rank >= (matrix > mine + tolerance).sum(1)).all()
        assert (got_rank <= (matrix > mine - tolerance).sum(1)).all()
        assert got_rank.dtype == got.pmi.dtype


def test_perfect_pairs_rank_first_and_reach_the_cap(backend):
    query = torch.eye(50)
    got = pair_scores(query, query, temperature=0.02)
    assert not got.rank_query.any()
    assert not got.rank_key.any()
    assert got.pmi.max().item() == pytest.approx(math.log(50), rel=1e-6)


@given(drawn=matrices(dtypes=(torch.float32, torch.bfloat16)))
def test_row_logsumexp_matches_the_oracle(backend, drawn):
    query, key = drawn.draw()
    got = row_logsumexp(query, key, temperature=0.5)
    true_leaves = exact(query, key)
    want = oracle.row_logsumexp(*true_leaves, temperature=0.5)
    s = scores(query, key, 2.0)
    assert_contract("lse", got, s.logsumexp(1), want, largest_logit(s))
    up = torch.randn(drawn.rows, generator=torch.Generator().manual_seed(1))
    mine = torch.autograd.grad(got, (query, key), up)
    rough = torch.autograd.grad(s.logsumexp(1), (query, key), up)
    true = torch.autograd.grad(want, true_leaves, up.double())
    for g, r, t, other in zip(mine, rough, true, (key, query), strict=True):
        assert_contract("gradient", g, r, t, 2 * float(up.abs().max() * other.detach().abs().max()))


def test_bad_numbers_come_out_as_nan(backend):
    query, key = torch.randn(8, 4), torch.randn(8, 4)
    query[3, 0] = float("nan")
    assert info_nce(query, key).isnan()
    by_query = info_nce(query, key, direction="query", reduction="none")
    assert by_query.isnan().tolist() == [i == 3 for i in range(8)]
    query[3, 0] = float("inf")
    assert pair_scores(query, key).pmi.isnan().all()


def test_columns_do_not_depend_on_chunks(backend, monkeypatch):
    query, key = torch.randn(600, 16) * 3, torch.randn(600, 16) * 3
    whole = info_nce(query, key, reduction="none")
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    assert error(info_nce(query, key, reduction="none"), whole) < 2e-5
