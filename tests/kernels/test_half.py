"""float16 as a CUDA device computes it: float16 products into float32, scores in float32, their gradient in float16."""

from __future__ import annotations

import math

import pytest
import torch

from main_kernels import backends, info_nce, linear_kl, reference, sigmoid_loss
from main_kernels.sweep import CrossEntropy, half, plan, problem, products, sweep

from .contract import DEVICE, Matrices, exact

PAIRS = Matrices(160, 160, 24, torch.float16, 0.3, False, 5)


@pytest.fixture(autouse=True)
def multiplied(monkeypatch):
    """The plan of a CUDA device, in chunks of 128 rows, with its products made by the CPU; their operands' dtypes."""
    dtypes = []

    def cuda_plan(rows, columns, width, dtype, device, **saved):
        return plan.make_plan(rows, columns, width, dtype, "cuda", **saved)

    def multiply(left, right, out):
        dtypes.append(left.dtype)
        assert left.dtype == right.dtype
        torch.mm(left.float(), right.float(), out=out)

    def add_product(left, right, out):
        dtypes.append(left.dtype)
        out.addmm_(left.float(), right.float())

    monkeypatch.setattr(plan, "leaves_float32", lambda device: True)
    monkeypatch.setattr(plan, "SMALL_PROBLEM", 0)
    monkeypatch.setattr(plan, "CUDA_CHUNK_ROWS", (128, 128))
    monkeypatch.setattr(problem, "make_plan", cuda_plan)
    monkeypatch.setattr(products, "multiply", multiply)
    monkeypatch.setattr(products, "add_product", add_product)
    with backends.use_backend("plain"):
        yield dtypes
    assert set(dtypes) == {torch.float16}


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28], ids=["recomputed", "saved"])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e3])
def test_info_nce_keeps_its_digits_at_any_upstream_gradient(workspace_bytes, size):
    query, key = PAIRS.draw()
    scaled = query.detach() * 100
    leaves = [scaled.requires_grad_(), key]
    options = {"temperature": 50.0}
    swept = sweep(*leaves, scale=1 / 50, targets=torch.arange(160), column_lse=True, workspace_bytes=workspace_bytes)
    got = 0.5 * (swept.row_nll() + swept.column_nll(slice(0, 160))).mean()
    assert float(got.detach()) == pytest.approx(float(info_nce(*leaves, **options).detach()), rel=1e-6)
    true_leaves = exact(*leaves)
    true = torch.autograd.grad(reference.info_nce(*true_leaves, **options), true_leaves)
    mine = torch.autograd.grad(got * size, leaves)
    for g, t in zip(mine, true, strict=True):
        want = t * size
        smallest = torch.finfo(torch.float16).smallest_normal * 2**-10  # of the result, whose range is the caller's
        assert float((g.double() - want).abs().max()) < 1e-3 * float(want.abs().max()) + smallest


def test_products_beyond_the_range_of_float16_are_exact_scores():
    query, key = (torch.full((4, 64), 60.0, dtype=torch.float16).requires_grad_() for _ in range(2))
    loss = info_nce(query, key, temperature=1e5, workspace_bytes=1 << 28)  # products of 230400
    assert float(loss.detach()) == pytest.approx(math.log(4), abs=1e-6)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (query, key)))


@pytest.mark.parametrize("upstream", ["sum", "rows"])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2, 10.0])
def test_the_loss_of_a_head_keeps_its_digits(z_loss, upstream):
    hidden, weight = Matrices(300, 700, 24, torch.float16, 0.6, False, 5).draw()
    targets = torch.randint(0, 700, (300,))
    targets[::5] = -100
    weights = torch.rand(300) * 1e-6
    true_leaves = exact(hidden, weight)
    up = torch.rand(300) if upstream == "rows" else torch.ones(300)
    loss = CrossEntropy(weights, label_smoothing=0.1, z_loss=z_loss)
    got = sweep(hidden, weight, targets=targets, ignore_index=-100, loss=loss).loss
    logits = (true_leaves[0] @ true_leaves[1].T).log_softmax(1)
    lse = (true_leaves[0] @ true_leaves[1].T).logsumexp(1)
    counted = targets != -100
    nll = -0.9 * logits.gather(1, targets.clamp(min=0)[:, None])[:, 0] - 0.1 * logits.mean(1)
    want = torch.where(counted, weights.double() * (nll + z_loss * lse.square()), 0)
    assert float((got.double() - want).abs().max()) < 1e-6 * float(want.abs().max()) + 1e-12
    rescale = 1e6  # the results are float16 numbers too: bring them into its range
    mine = torch.autograd.grad(
        (got * up * rescale).sum() if upstream == "rows" else got.sum() * rescale, (hidden, weight)
    )
    true = torch.autograd.grad((want * up * rescale).sum(), true_leaves)
    for g, t in zip(mine, true, strict=True):
        assert float((g.double() - t).abs().max()) < 1.5e-3 * float(t.abs().max())


def test_scale_and_bias_are_divided_by_the_power():
    query, key = PAIRS.draw()
    scale, bias = torch.tensor(0.7, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    leaves = [query, key, scale, bias]
    true_leaves = exact(*leaves)

    def call(function, query, key, scale, bias):
        return function(query, key, logit_scale=scale, logit_bias=bias)

    want = torch.autograd.grad(call(reference.sigmoid_loss, *true_leaves), true_leaves)
    got = torch.autograd.grad(call(sigmoid_loss, *leaves), leaves)
    for g, t in zip(got, want, strict=True):
        assert float((g.double() - t).abs().max()) < 2e-3 * float(t.abs().max())


def test_a_bad_coefficient_does_not_spoil_the_power():
    query, key = PAIRS.draw()
    swept = sweep(query, key, targets=torch.arange(160))
    upstream = torch.full((160,), 1e-7)
    upstream[3] = float("nan")
    got = torch.autograd.grad(swept.row_lse, query, upstream * 1e4)[0]
    true_query = query.detach().double().requires_grad_()
    want = torch.autograd.grad(
        (true_query @ key.detach().double().T).logsumexp(1), true_query, upstream.double() * 1e4
    )[0]
    others = torch.arange(160) != 3
    assert got[3].isnan().all()
    assert float((got - want)[others].abs().max()) < 2e-3 * float(want[others].abs().max())


def test_the_bound_covers_every_row():
    query, key = (x.detach() for x in Matrices(130, 150, 16, torch.float16, 4.0, False, 3).draw())
    score_map, backend = backends.ScoreMap(torch.tensor(1.0)), backends.get_backend("plain")
    made = problem.Problem(
        query, key, score_map, None, None, problem.make_plan(130, 150, 16, query.dtype, "cpu"), backend, None
    )
    products.multiply(query, key.T, torch.empty(130, 150))
    lse = (query.double() @ key.double().T).logsumexp(1)
    assert float(half._largest_lse(made)) >= float(lse.abs().max())


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@pytest.mark.parametrize(
    "upstream",
    [torch.full((160,), 1e-7, device=DEVICE), torch.rand(160, device=DEVICE) * 100],
    ids=["mean", "rows"],
)
def test_divergences_keep_their_digits(monkeypatch, divergence, upstream):
    """In chunks of 64 rows, with a trained teacher: its gradient grows with the scores of the student."""
    make_plan = plan.make_plan
    monkeypatch.setattr(plan, "make_plan", lambda *sizes: make_plan(*sizes[:-1], "cuda"))
    monkeypatch.setattr(plan, "pair_chunk_rows", lambda *_: 64)
    operands = (*PAIRS.draw(), *Matrices(160, 160, 24, torch.float16, 0.6, False, 6).draw())
    true_leaves = exact(*operands)
    got = linear_kl(*operands, divergence=divergence, reduction="none", token_mask=torch.arange(160) % 7 > 0)
    want = reference.linear_kl(*true_leaves, divergence=divergence, reduction="none")
    mask = torch.arange(160) % 7 > 0
    assert float((got - want * mask).abs().max().detach()) < 1e-5
    mine = torch.autograd.grad(got, operands, upstream)
    true = torch.autograd.grad(want, true_leaves, upstream.double() * mask)
    smallest = torch.finfo(torch.float16).smallest_normal * 2**-10
    for g, t in zip(mine, true, strict=True):
        assert float((g.double() - t).abs().max()) < 1e-3 * float(t.abs().max()) + smallest
