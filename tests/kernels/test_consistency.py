"""cyclic_consistency and relational_scores against their dense definitions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from main_kernels import consistency, cyclic_consistency, reference, relational_scores

from .contract import DEVICE, Matrices, assert_contract, error, exact, matrices, seeded
from .test_ops import multiply_adds

CONSISTENCY_CALLS = {
    "cyclic": lambda q, k: cyclic_consistency(q, k),
    "cyclic_cross": lambda q, k: cyclic_consistency(q, k, within=0.25),
    "cyclic_within": lambda q, k: cyclic_consistency(q, k, cross=0.0),
    "relational": relational_scores,
}


def operands(rows=7, width=4, dtype=torch.float32, grad=(True, True)):
    return [torch.randn(rows, width, dtype=dtype, requires_grad=g) for g in grad]


@given(
    drawn=matrices(square=True),
    cross=st.sampled_from([0.0, 1.0, 0.3]),
    within=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_matches_the_reference(drawn: Matrices, cross: float, within: float):
    query, key = drawn.draw()
    leaves = exact(query, key)
    options = {"cross": cross, "within": within}
    wide = [t.detach().to(torch.promote_types(t.dtype, torch.float32)).requires_grad_() for t in (query, key)]
    size = float(torch.cat(leaves).detach().square().sum(1).max())  # of the largest inner product
    got, want = cyclic_consistency(query, key, **options), reference.cyclic_consistency(*leaves, **options)
    rough = dense(*wide, cross, within)
    assert_contract("value", got, rough, want, 8 * drawn.width * size**2)
    mine = torch.autograd.grad(got, (query, key))
    theirs = [g.to(query.dtype) for g in torch.autograd.grad(rough, wide)]
    for name, g, r, t in zip(("query", "key"), mine, theirs, torch.autograd.grad(want, leaves), strict=True):
        assert_contract(f"d_{name}", g, r, t, 8 * drawn.width * size**1.5)

    rows, true_rows = relational_scores(query, key), reference.relational_scores(*leaves)
    gaps = wide[0] @ wide[0].T - wide[1] @ wide[1].T
    assert_contract("rows", rows, -gaps.square().mean(1), true_rows, 8 * drawn.width * size**2)
    up = torch.randn(drawn.rows, generator=seeded(drawn.seed))
    mine = torch.autograd.grad(rows, (query, key), up.to(rows.dtype))
    theirs = torch.autograd.grad(-gaps.square().mean(1), wide, up.to(wide[0].dtype))
    true = torch.autograd.grad(true_rows, leaves, up.double())
    for name, g, r, t in zip(("query", "key"), mine, theirs, true, strict=True):
        bound = 8 * drawn.width * size**1.5 * float(up.abs().max())
        assert_contract(f"d_{name} of rows", g, r.to(query.dtype), t, bound)


def dense(query, key, cross, within):
    s = query @ key.T
    return (cross * (s - s.T).square() + within * (query @ query.T - key @ key.T).square()).mean()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(consistency, "_CHUNK_ENTRIES", 1)  # 64 rows at a time


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONSISTENCY_CALLS)
def test_the_chunk_size_does_not_change_the_result(name, dtype, monkeypatch):
    results = []
    query, key = operands(200, 24, dtype)
    up = torch.randn(CONSISTENCY_CALLS[name](query, key).shape)
    for entries in (1 << 30, 1):
        monkeypatch.setattr(consistency, "_CHUNK_ENTRIES", entries)
        out = CONSISTENCY_CALLS[name](query, key)
        results.append((out, *torch.autograd.grad(out, (query, key), up)))
    for whole, chunked in zip(*results, strict=True):
        rounding = 1e-5 if whole.dtype == torch.float32 else 8e-3
        assert error(whole, chunked) <= rounding * float(whole.detach().abs().max())


@pytest.mark.parametrize("grad", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", CONSISTENCY_CALLS)
def test_gradcheck_passes_in_float64(name, grad, small_chunks):
    assert gradcheck(CONSISTENCY_CALLS[name], operands(dtype=torch.float64, grad=grad))
    assert gradcheck(CONSISTENCY_CALLS[name], operands(70, 2, dtype=torch.float64, grad=grad), fast_mode=True)


@pytest.mark.parametrize("cross", [1.0, 0.0])
def test_opcheck_passes(cross):
    torch.library.opcheck(torch.ops.main_kernels.cyclic_consistency.default, (*operands(), cross, 1.0))
    torch.library.opcheck(torch.ops.main_kernels.relational_scores.default, operands())


@pytest.mark.parametrize(
    ("name", "grad", "products"),
    [
        ("cyclic", (False, False), 2),
        ("cyclic", (True, True), 4),
        ("cyclic", (False, True), 4),
        ("cyclic_cross", (False, False), 3),
        ("cyclic_cross", (True, True), 7),
        ("cyclic_cross", (True, False), 5),
        ("relational", (False, False), 6),
        ("relational", (False, True), 13),
    ],
)
def test_only_needed_products_are_computed(name, grad, products):
    """Of N D² multiply-adds each; none for a frozen side, none for C where its trace has no weight."""
    query, key = operands(64, 32, grad=grad)

    def run() -> None:
        out = CONSISTENCY_CALLS[name](query, key).sum()
        if out.requires_grad:
            out.backward()

    assert multiply_adds(run) == products * 64 * 32 * 32


@pytest.mark.parametrize("name", CONSISTENCY_CALLS)
def test_repeated_runs_and_backwards_give_the_same_bits(name, small_chunks):
    query, key = operands(200, 24)
    runs = []
    for _ in range(2):
        out = CONSISTENCY_CALLS[name](query, key).sum()
        runs.append((out, *torch.autograd.grad(out, (query, key), retain_graph=True)))
    for first, again in zip(*runs, strict=True):
        assert torch.equal(first, again)
    for first, again in zip(runs[0][1:], torch.autograd.grad(out, (query, key)), strict=True):
        assert torch.equal(first, again)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", CONSISTENCY_CALLS)
def test_non_finite_operands_give_non_finite_results(name, bad):
    query, key = operands()
    with torch.no_grad():
        query[2, 1] = bad
    out = CONSISTENCY_CALLS[name](query, key)
    assert out.isnan().all()
    assert not torch.autograd.grad(out.sum(), key)[0].isfinite().any()


def test_nearly_equal_operands_do_not_cancel():
    """Differences of 1e-4: the Gram form tr(QQᵀQQᵀ) - 2 tr(QQᵀKKᵀ) + tr(KKᵀKKᵀ) loses two digits and more."""
    query = torch.nn.functional.normalize(torch.randn(500, 64))
    key = query + 1e-4 * torch.randn(500, 64)
    for cross, within in ((1.0, 0.0), (0.0, 1.0)):
        want = float(reference.cyclic_consistency(query, key, cross=cross, within=within))
        assert float(cyclic_consistency(query, key, cross=cross, within=within)) == pytest.approx(want, rel=1e-5)
    gram = (query.T @ query).square().sum() - 2 * (query.T @ key).square().sum() + (key.T @ key).square().sum()
    assert abs(float(gram) / 500**2 - want) > 0.01 * want
    assert error(relational_scores(query, key), reference.relational_scores(query, key)) < 1e-5 * want


def test_equal_operands_give_zero():
    query = torch.randn(20, 8)
    assert cyclic_consistency(query, query).item() == 0
    assert not relational_scores(query, query).any()
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    turned = query.double() @ rotation
    assert cyclic_consistency(query.double(), turned, cross=0.0).item() < 1e-12 * 20 * 8


@pytest.mark.parametrize("name", CONSISTENCY_CALLS)
def test_autocast_changes_nothing_eager_or_compiled(name):
    torch._dynamo.reset()
    query, key = operands(30, 8)
    results = []
    compiled = torch.compile(CONSISTENCY_CALLS[name], fullgraph=True, backend="aot_eager")
    for call, autocast in ((CONSISTENCY_CALLS[name], False), (CONSISTENCY_CALLS[name], True), (compiled, False)):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
            out = call(query, key)
            results.append((out, *torch.autograd.grad(out.sum(), (query, key))))
    for want, cast, graph in zip(*results, strict=True):
        assert torch.equal(cast, want)
        assert error(graph, want) < 1e-6


@pytest.mark.parametrize("weights", [{"cross": -1.0}, {"within": float("nan")}])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match=next(iter(weights))):
        cyclic_consistency(torch.randn(3, 2), torch.randn(3, 2), **weights)
