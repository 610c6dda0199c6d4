"""token_logprobs against the float64 reference: values, statistics, gradients, extremes, masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from main_kernels import reference, token_logprobs
from main_kernels.sweep import plan, tiling

from .contract import DTYPES, Matrices, assert_contract, error, exact, largest_logit, matrices, seeded


def check(drawn: Matrices, *, bias_spread=None, softcap=None, temperature=1.0, masked="some", upstream="random"):
    hidden, weight = drawn.draw()
    generator = seeded(drawn.seed + 1)
    targets = torch.randint(0, drawn.columns, (drawn.rows,), generator=generator)
    if masked == "some":
        targets[torch.rand(drawn.rows, generator=generator) < 0.3] = -100
    elif masked == "all":
        targets[:] = -100
    leaves = [hidden, weight]
    bias = None
    if bias_spread is not None:
        bias = (torch.randn(drawn.columns, generator=generator) * bias_spread).requires_grad_()
        leaves.append(bias)
    options = {"bias": bias, "softcap": softcap, "temperature": temperature}
    got = token_logprobs(hidden, weight, targets, **options)
    true_leaves = exact(*leaves)
    true_options = {**options, "bias": true_leaves[2] if bias is not None else None}
    want = reference.token_logprobs(*true_leaves[:2], targets, **true_options).logprobs
    rough = reference.token_logprobs(hidden, weight, targets, **options, product=reference.rough).logprobs
    logits = reference.logits(hidden, weight, **options)
    assert_contract("logprobs", got, rough, want, largest_logit(logits))
    assert got.dtype == torch.promote_types(hidden.dtype, torch.float32)

    up = {
        "random": torch.randn(drawn.rows, generator=generator),
        "equal": torch.full((drawn.rows,), -1 / 7),
        "zero": torch.zeros(drawn.rows),
    }[upstream]
    mine = torch.autograd.grad(got, leaves, up.to(got.dtype))
    true = torch.autograd.grad(want, true_leaves, up.double())
    theirs = torch.autograd.grad(rough, leaves, up.to(rough.dtype))
    factor = float(up.abs().max()) / temperature
    largest = {
        "hidden": factor * float(weight.detach().abs().max()),
        "weight": factor * float(hidden.detach().abs().max()),
        "bias": factor,
    }
    for name, g, r, t in zip(largest, mine, theirs, true, strict=False):
        assert_contract(f"d_{name}", g, r, t, largest[name])


@given(
    drawn=matrices(),
    bias_spread=st.sampled_from([None, 0.5]),
    softcap=st.sampled_from([None, 30.0, 2.0]),
    temperature=st.sampled_from([1.0, 0.3, 10.0]),
    masked=st.sampled_from(["none", "some", "all"]),
    upstream=st.sampled_from(["random", "equal", "zero"]),
)
def test_matches_the_reference(backend, drawn, bias_spread, softcap, temperature, masked, upstream):
    if backend != "plain" and drawn.dtype == torch.float64:
        drawn = Matrices(**{**drawn.__dict__, "dtype": torch.float32})
    check(
        drawn,
        bias_spread=bias_spread,
        softcap=softcap,
        temperature=temperature,
        masked=masked,
        upstream=upstream,
    )


@pytest.mark.parametrize("upstream", ["equal", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_chunks_match_the_reference(backend, dtype, upstream, monkeypatch, fast_bfloat16):
    """Large enough for bfloat16 products, cut into chunks: the split-plane accumulation is at work."""
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    drawn = Matrices(700, 1500, 48, dtype, 0.6, False, 5)
    assert plan.make_plan(700, 1500, 48, dtype).rows == 512
    assert (plan.make_plan(700, 1500, 48, dtype).compute == dtype) == (fast_bfloat16 or dtype == torch.float32)
    check(drawn, upstream=upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_match_the_reference(backend, dtype, size):
    hidden = torch.full((5, 4), 50.0, dtype=dtype)
    weight = (torch.rand(301, 4) * size / 200).to(dtype)
    targets = torch.arange(5) * 60
    got = token_logprobs(hidden, weight, targets)
    want = reference.token_logprobs(hidden, weight, targets).logprobs
    rough = reference.token_logprobs(hidden, weight, targets, product=reference.rough).logprobs
    assert_contract("logprobs", got, rough, want, 1e4)


@pytest.mark.slow
def test_a_real_vocabulary_matches_the_reference(backend):
    check(Matrices(60, 128256, 32, torch.float32, 0.5, False, 3), upstream="equal")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_operands_give_nan(backend, bad):
    hidden, weight = torch.randn(6, 4), torch.randn(50, 4)
    hidden[2, 1] = bad
    targets = torch.arange(6)
    out = token_logprobs(hidden, weight, targets, return_stats=True)
    for vector in (out.logprobs, out.entropy):
        assert vector.isnan().tolist() == [False, False, True, False, False, False]
    weight[7, 0] = bad
    assert token_logprobs(hidden, weight, targets).isnan().all()


@given(drawn=matrices(dtypes=(torch.float32, torch.bfloat16)), masked=st.booleans())
def test_statistics_match_the_reference(backend, drawn, masked):
    hidden, weight = drawn.draw()
    targets = torch.arange(drawn.rows) % drawn.columns
    if masked:
        targets[::2] = -100
    got = token_logprobs(hidden, weight, targets, return_stats=True)
    want = reference.token_logprobs(hidden, weight, targets)
    z = reference.logits(hidden, weight)
    tolerance = max(1e-6, 4e-7 * float(z.abs().max()), 4e-7 * drawn.width * drawn.spread**2)
    assert error(got.entropy, want.entropy) <= 20 * tolerance
    own = z.gather(1, targets.clamp(min=0)[:, None])
    scored = targets >= 0
    surely, perhaps = (z > own + tolerance).sum(1), (z > own - tolerance).sum(1)
    assert ((got.rank >= surely) & (got.rank < perhaps.clamp(min=1)))[scored].all()
    assert not got.rank[~scored].any()
    assert not got.is_argmax[~scored].any()
    assert torch.equal(got.is_argmax[scored], (got.rank == 0)[scored])


def test_a_fully_masked_input_gives_zero_in_the_graph(backend):
    hidden, weight = (torch.randn(n, 4, requires_grad=True) for n in (3, 9))
    loss = token_logprobs(hidden, weight, torch.full((3,), -100)).sum()
    assert loss.item() == 0
    loss.backward()
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_masked_rows_do_not_change_the_others(backend, dtype):
    hidden, weight = torch.randn(40, 8, dtype=dtype), torch.randn(99, 8, dtype=dtype)
    targets = torch.randint(0, 99, (40,))
    masked = targets.clone()
    masked[::3] = -100
    whole, some = (token_logprobs(hidden, weight, t) for t in (targets, masked))
    keep = masked >= 0
    assert error(whole[keep], some[keep]) < 1e-5
    assert not some[~keep].any()


def test_rows_with_rising_scores_match_the_reference(backend, monkeypatch):
    """Every block has a new maximum, so every running sum is rescaled, many times."""
    weight = torch.linspace(-30, 30, 5000)[:, None]
    hidden, targets = torch.tensor([[1.0], [-1.0], [0.3]]), torch.tensor([4000, 10, 77])
    want = reference.token_logprobs(hidden, weight, targets)
    for columns in (4096, 1000):
        monkeypatch.setattr(tiling, "_TILE_COLUMNS", columns)
        got = token_logprobs(hidden, weight, targets, return_stats=True)
        assert error(got.logprobs, want.logprobs) < 8e-6
        assert error(got.entropy, want.entropy) < 8e-6
        assert error(token_logprobs(hidden, weight, targets), want.logprobs) < 8e-6
        assert torch.equal(got.rank, want.rank)
