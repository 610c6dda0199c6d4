"""mutual_information against the float64 reference; test_gaussians.py compares it with a known information."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn.functional import logsigmoid

from main_kernels import mutual_information, mutual_information_bounds, reference
from main_kernels.information import ESTIMATORS

from .contract import DEVICE, Matrices, assert_contract, error, exact, matrices, seeded
from .test_ops import multiply_adds


def dense(query, key, *, temperature, estimator, clip=5.0, baseline=None):
    """What people write: the product in the input's dtype, everything after it in float32."""
    f = query @ key.T
    if query.dtype == torch.float16:  # torch's own product overflows at 65504
        f = query.float() @ key.float().T
    f = f.to(torch.promote_types(f.dtype, torch.float32)) / temperature
    joint, product = f.diagonal(), f[~torch.eye(len(f), dtype=torch.bool)]
    others = product.logsumexp(0) - math.log(max(len(product), 1))
    js = logsigmoid(joint).mean() + logsigmoid(-product).mean()
    if estimator == "tuba" and baseline is not None:
        b = baseline.to(f.dtype).expand(len(f))
        return 1 + (joint - b).mean() - (product - b.repeat_interleave(len(f) - 1)).exp().mean()
    return {
        "infonce": math.log(len(f)) + (joint - f.logsumexp(1)).mean(),
        "nwj": joint.mean() - (others - 1).exp(),
        "tuba": 1 + joint.mean() - others.exp(),
        "dv": joint.mean() - others,
        "js": js,
        "smile": (joint.mean() - product.clamp(-clip, clip).exp().mean().log() - js).detach() + js,
        "club": joint.mean() - f.mean(),
    }[estimator]


def largest_terms(query, key, temperature, estimator, baseline=None):
    """(of a value, of a gradient with respect to the scores): a rounded score is off by its own ulps, and an
    exponential by its size times that."""
    f = query.detach().double() @ key.detach().double().T / temperature
    if baseline is not None:
        f = f - baseline.detach().double().expand(len(f))[:, None]
    score = max(float(f.abs().max()), math.log(len(f)), 1.0)
    if estimator not in ("nwj", "tuba"):
        return score, score
    f.fill_diagonal_(-torch.inf)
    largest = float((f.logsumexp((0, 1)) - math.log(len(f) * (len(f) - 1))).exp())
    return score * max(1.0, largest), score * max(1.0, largest)


@given(
    drawn=matrices(square=True),
    estimator=st.sampled_from(ESTIMATORS),
    temperature=st.sampled_from([1.0, 0.3, 10.0]),
    clip=st.sampled_from([0.5, 5.0]),
    base=st.sampled_from([None, "scalar", "rows"]),
)
def test_matches_the_reference(backend, drawn: Matrices, estimator, temperature, clip, base):
    if backend != "plain" and drawn.dtype == torch.float64:
        drawn = Matrices(**{**drawn.__dict__, "dtype": torch.float32})
    assume(drawn.rows > 1 or estimator == "infonce")
    query, key = drawn.draw()
    leaves = [query, key]
    options = {"temperature": temperature, "estimator": estimator, "clip": clip}
    if estimator == "tuba" and base is not None:
        generator = seeded(drawn.seed)
        shape = () if base == "scalar" else (drawn.rows,)
        leaves.append(torch.randn(shape, generator=generator).requires_grad_())
    true_leaves = exact(*leaves)
    value, slope = largest_terms(query, key, temperature, estimator, *leaves[2:])
    assume(value < 1e30)
    got, rough, want = (
        function(*given[:2], baseline=given[2] if len(given) > 2 else None, **options)
        for function, given in (
            (mutual_information, leaves),
            (dense, leaves),
            (reference.mutual_information, true_leaves),
        )
    )
    assert got.dtype == torch.promote_types(drawn.dtype, torch.float32)
    assert_contract("value", got, rough, want, value)
    mine, theirs, true = (torch.autograd.grad(o, v) for o, v in ((got, leaves), (rough, leaves), (want, true_leaves)))
    sizes = [float(t.detach().abs().max()) / temperature for t in (key, query)] + [1.0]
    assume(slope * max(sizes) < torch.finfo(drawn.dtype).max / 10)  # else float16 cannot hold the true gradient
    for name, g, r, t, size in zip(("query", "key", "baseline"), mine, theirs, true, sizes, strict=False):
        assert_contract(f"d_{name}", g, r, t, slope * size)


@given(
    drawn=matrices(square=True, dtypes=(torch.float32, torch.bfloat16)),
    estimator=st.sampled_from(ESTIMATORS),
    temperature=st.sampled_from([1.0, 0.3, 10.0]),
)
def test_each_bound_equals_its_estimator(backend, drawn: Matrices, estimator, temperature):
    assume(drawn.rows > 1)
    query, key = drawn.draw()
    value, slope = largest_terms(query, key, temperature, estimator)
    assume(value < 1e30)
    options = {"temperature": temperature, "clip": 2.0}
    bounds = mutual_information_bounds(query, key, **options)
    assert tuple(bounds) == ESTIMATORS
    leaves = exact(query, key)
    want = reference.mutual_information_bounds(*leaves, **options)[estimator]
    rough = dense(query, key, estimator=estimator, **options)
    assert_contract(estimator, bounds[estimator], rough, want, value)
    mine, theirs, true = (
        torch.autograd.grad(o, v) for o, v in ((bounds[estimator], (query, key)), (rough, (query, key)), (want, leaves))
    )
    for g, r, t, other in zip(mine, theirs, true, (key, query), strict=True):
        assert_contract("gradient", g, r, t, slope * float(other.detach().abs().max()) / temperature)


def test_bounds_cover_every_estimator(backend):
    query, key = operands(40, 8)
    for estimator, value in mutual_information_bounds(query, key, temperature=2.0, clip=1.0).items():
        alone = mutual_information(query, key, temperature=2.0, clip=1.0, estimator=estimator)
        assert error(value, alone) <= 2e-6 * max(1.0, float(alone.detach().abs()))


def operands(rows=6, width=3, dtype=torch.float32):
    return tuple(torch.randn(rows, width, dtype=dtype, requires_grad=True) for _ in range(2))


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 20])
@pytest.mark.parametrize("estimator", sorted(set(ESTIMATORS) - {"smile"}))
def test_gradcheck_passes_in_float64(estimator, workspace_bytes):
    def call(q, k):
        return mutual_information(q, k, temperature=0.7, estimator=estimator, workspace_bytes=workspace_bytes)

    assert gradcheck(call, operands(dtype=torch.float64))


@pytest.mark.parametrize("shape", [(), (6,)])
def test_gradcheck_passes_for_the_baseline(shape):
    baseline = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def call(q, k, b):
        return mutual_information(q, k, estimator="tuba", baseline=b)

    assert gradcheck(call, (*operands(dtype=torch.float64), baseline))


def test_gradcheck_passes_for_a_sum_of_bounds():
    def call(q, k):
        bounds = mutual_information_bounds(q, k, temperature=0.7)
        return torch.stack([v for name, v in bounds.items() if name != "smile"])

    assert gradcheck(call, operands(dtype=torch.float64))


def test_smile_has_the_value_of_clipped_dv_and_the_gradient_of_js(backend):
    query, key = operands(20, 8)
    joined = {}
    for clip in (0.5, 5.0, 1e3):
        smile = mutual_information(query, key, estimator="smile", clip=clip)
        joined[clip] = smile.item()
        js = mutual_information(query, key, estimator="js")
        for a, b in zip(*(torch.autograd.grad(o, (query, key)) for o in (smile, js)), strict=True):
            assert error(a, b) <= 1e-7
        f = (query @ key.T).detach().double()
        others = f[~torch.eye(20, dtype=torch.bool)]
        want = f.diagonal().mean() - others.clamp(-clip, clip).exp().mean().log()
        assert joined[clip] == pytest.approx(float(want), abs=2e-6)
    assert joined[1e3] == pytest.approx(mutual_information(query, key, estimator="dv").item(), abs=2e-6)
    assert len(set(joined.values())) == 3


@pytest.mark.one_backend
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_compiles_with_fullgraph(backend, estimator):
    torch._dynamo.reset()
    query, key = operands(32, 8)

    def call(q, k):
        return mutual_information(q, k, temperature=2.0, estimator=estimator)

    results = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        out = function(query, key)
        results.append((out, *torch.autograd.grad(out, (query, key))))
    for eager, graph in zip(*results, strict=True):
        assert error(eager, graph) <= 1e-6


@pytest.mark.one_build
def test_bounds_compile_with_fullgraph(backend):
    torch._dynamo.reset()
    query, key = operands(32, 8)
    compiled = torch.compile(mutual_information_bounds, fullgraph=True, backend="aot_eager")
    for a, b in zip(mutual_information_bounds(query, key).values(), compiled(query, key).values(), strict=True):
        assert error(a, b) <= 1e-5 * max(1.0, float(a.detach().abs()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeated_runs_give_the_same_bits(backend, estimator, dtype):
    query, key = (t.detach().to(dtype).requires_grad_() for t in operands(300, 64))
    results = []
    for _ in range(2):
        out = mutual_information(query, key, temperature=20.0, estimator=estimator)
        results.append((out, *torch.autograd.grad(out, (query, key))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.one_build
@pytest.mark.parametrize("estimator", sorted(set(ESTIMATORS) - {"club"}))
def test_autocast_casts_the_operands_and_nothing_else(backend, estimator):
    query, key = operands(16, 8)
    narrow = [t.detach().bfloat16().requires_grad_() for t in (query, key)]
    exact = [t.detach().float().requires_grad_() for t in narrow]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = mutual_information(query, key, estimator=estimator)
    want = mutual_information(*narrow, estimator=estimator)
    assert out.dtype == torch.float32
    assert torch.equal(out, want)
    theirs = torch.autograd.grad(mutual_information(*exact, estimator=estimator), exact)
    rounded = torch.autograd.grad(want, narrow)
    for a, b, c in zip(torch.autograd.grad(out, (query, key)), theirs, rounded, strict=True):
        assert error(a, b) <= 1e-6 * float(b.abs().max())
        assert torch.equal(a.bfloat16(), c)


def test_autocast_leaves_club_alone():
    query, key = operands(16, 8)
    want = mutual_information(query, key, estimator="club")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(mutual_information(query, key, estimator="club"), want)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_frozen_sides_get_no_gradient(backend, estimator, frozen):
    pair, both = operands(), mutual_information(*operands(), estimator=estimator)
    assert both.requires_grad
    want = torch.autograd.grad(mutual_information(*pair, estimator=estimator), pair)
    pair[frozen].requires_grad_(False)
    mutual_information(*pair, estimator=estimator).backward()
    assert pair[frozen].grad is None
    assert error(pair[1 - frozen].grad, want[1 - frozen]) <= 1e-6


@pytest.mark.one_build
@pytest.mark.parametrize(("grad", "products"), [((False, False), 1), ((True, False), 2), ((True, True), 3)])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "bounds"])
def test_all_bounds_need_the_products_of_one(backend, estimator, grad, products):
    """One walk and no product for a side nobody trains, for all the bounds together as for one; CLUB makes none."""
    query, key = (torch.randn(64, 32, requires_grad=wanted) for wanted in grad)

    def run():
        if estimator == "bounds":
            value = torch.stack(list(mutual_information_bounds(query, key, temperature=8.0).values())).sum()
        else:
            value = mutual_information(query, key, temperature=8.0, estimator=estimator)
        if value.requires_grad:
            value.backward()

    assert multiply_adds(run) == (0 if estimator == "club" else products * 64 * 64 * 32)


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("estimator", ["infonce", "dv", "js", "smile", "club"])
def test_huge_scores_match_the_reference(backend, estimator, size):
    query = torch.full((5, 4), 50.0, requires_grad=True)
    key = (torch.rand(5, 4) * size / 200).requires_grad_()
    leaves = exact(query, key)
    got, want = mutual_information(query, key, estimator=estimator), None
    want = reference.mutual_information(*leaves, estimator=estimator)
    assert_contract("value", got, dense(query, key, temperature=1.0, estimator=estimator), want, 1e4)
    for a, b in zip(torch.autograd.grad(got, (query, key)), torch.autograd.grad(want, leaves), strict=True):
        assert error(a, b) <= 2e-3 * 50


@pytest.mark.parametrize("estimator", ["nwj", "tuba"])
def test_exponential_bounds_overflow_to_minus_infinity(backend, estimator):
    query = torch.eye(3) * 1e2
    assert mutual_information(query, query.flip(0), estimator=estimator).item() == -math.inf
    assert mutual_information(-query, query.flip(0), estimator=estimator).item() == pytest.approx(
        -1e4 / 3 + {"nwj": -2 / 3 / math.e, "tuba": 1 / 3}[estimator]
    )


def test_a_baseline_makes_huge_scores_harmless(backend):
    query, key = torch.randn(6, 4) * 30, torch.randn(6, 4) * 30
    f = (query @ key.T).double()
    baseline = (f - torch.diag(torch.full((6,), torch.inf))).logsumexp(1) - math.log(5)
    got = mutual_information(query, key, estimator="tuba", baseline=baseline)
    assert got.item() == pytest.approx(float((f.diagonal() - baseline).mean()), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_non_finite_operands_give_nan(backend, estimator, bad):
    query, key = torch.randn(6, 4), torch.randn(6, 4)
    query[2, 1] = bad
    assert mutual_information(query, key, estimator=estimator).isnan()
    assert mutual_information(key, query, estimator=estimator).isnan()
    assert mutual_information_bounds(query, key)[estimator].isnan()


def test_one_pair_gives_no_information(backend):
    query, key = operands(1, 4)
    value = mutual_information(query, key)
    assert value.item() == 0
    value.backward()
    assert not query.grad.any()


PAIRS = torch.randn(5, 3, device=DEVICE), torch.randn(5, 3, device=DEVICE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mutual_information(PAIRS[0], PAIRS[1][:4]), "key: expected 5 rows, got 4 rows"),
        (lambda: mutual_information(PAIRS[0], PAIRS[1].half()), "key: expected .*, got dtype torch.float16"),
        (lambda: mutual_information(*PAIRS, estimator="mine"), "estimator: expected one of 'infonce', .*, got 'mine'"),
        (lambda: mutual_information(*PAIRS, temperature=0), "temperature: expected .*, got 0"),
        (lambda: mutual_information(*PAIRS, estimator="smile", clip=-1.0), "clip: expected .*, got -1.0"),
        (
            lambda: mutual_information(*PAIRS, estimator="dv", baseline=torch.ones(5)),
            "baseline: expected none .*, got one",
        ),
        (lambda: mutual_information(*PAIRS, estimator="tuba", baseline=1.0), "baseline: expected a tensor, got float"),
        (
            lambda: mutual_information(*PAIRS, estimator="tuba", baseline=torch.ones(4)),
            r"baseline: expected .*, got shape \(4,\)",
        ),
        (
            lambda: mutual_information(*PAIRS, estimator="tuba", baseline=torch.tensor(1)),
            "baseline: expected .*, got dtype",
        ),
        (lambda: mutual_information_bounds(PAIRS[0][0], PAIRS[1]), r"query: expected .*, got shape \(3,\)"),
        (lambda: mutual_information_bounds(*PAIRS, temperature=-1), "temperature: expected .*, got -1"),
        (lambda: mutual_information_bounds(*PAIRS, clip=float("nan")), "clip: expected .*, got nan"),
        (
            lambda: mutual_information_bounds(PAIRS[0][:1], PAIRS[1][:1]),
            "query: expected at least 2 rows, .*, got 1 rows",
        ),
        *(
            (
                lambda e=e: mutual_information(PAIRS[0][:1], PAIRS[1][:1], estimator=e),
                "query: expected at least .*, got 1 rows",
            )
            for e in ESTIMATORS[1:]
        ),
    ],
)
def test_an_invalid_argument_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_rows_with_rising_scores_match_the_reference(backend):
    """Every block of a row has a new maximum, so every running sum is rescaled."""
    query, key = torch.ones(2100, 1), torch.linspace(-12, 12, 2100)[:, None]
    got, want = mutual_information_bounds(query, key), reference.mutual_information_bounds(query, key)
    for name, value in got.items():
        assert abs(value.item() - want[name].item()) <= 2e-6 * max(1.0, abs(want[name].item())), name
