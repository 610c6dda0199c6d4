"""linear_kl against the float64 reference: random operands, several chunks, extreme logits, every mixture."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from main_kernels import backends, linear_kl, reference
from main_kernels.sweep import plan

from .contract import BACKENDS, DTYPES, Matrices, assert_contract, error, exact, largest_logit, matrices
from .divergences import KINDS, NAMES, OPTIONS, check, dense, draw, leaves


@given(
    drawn=matrices(),
    teacher_dtype=st.sampled_from([None, *DTYPES[:3]]),
    teacher_width=st.sampled_from([1, 5, 32]),
    divergence=st.sampled_from(KINDS),
    beta=st.sampled_from([0.5, 0.1, 0.9, 1e-6]),
    temperature=st.sampled_from([1.0, 0.3, 10.0]),
    masked=st.sampled_from(["none", "some", "all"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    upstream=st.sampled_from(["equal", "random"]),
    frozen=st.sampled_from([(), NAMES[2:]]),
)
def test_matches_the_reference(backend, drawn, teacher_dtype, teacher_width, masked, **options):
    if backend != "plain" and drawn.dtype == torch.float64:
        drawn = Matrices(**{**drawn.__dict__, "dtype": torch.float32})
    if drawn.dtype == torch.float64:
        teacher_dtype = None
    check(*draw(drawn, teacher_dtype or drawn.dtype, teacher_width, masked=masked), **options)


@pytest.mark.parametrize(
    ("dtypes", "upstream"),
    [((torch.bfloat16, torch.bfloat16), "random"), ((torch.bfloat16, torch.float32), "equal")],
)
@pytest.mark.parametrize("options", OPTIONS)
def test_several_chunks_match_the_reference(backend, options, dtypes, upstream, monkeypatch, fast_bfloat16):
    """Large enough for bfloat16 products, cut into chunks: the split-plane accumulation is at work."""
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    drawn = Matrices(540, 1060, 48, dtypes[0], 0.4, False, 5)
    computes = [plan.make_plan(540, 1060, 40, dtype).compute for dtype in dtypes]
    assert computes == (list(dtypes) if fast_bfloat16 else [torch.float32, torch.float32])
    assert plan.pair_chunk_rows(540, 1060, sum(compute.itemsize for compute in computes)) <= 270
    check(*draw(drawn, dtypes[1], 40), upstream=upstream, reduction="none", **options)


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 511, 513, 1000])
def test_chunks_cover_the_rows_evenly(rows):
    step = plan.pair_chunk_rows(rows, 1 << 20, 8)
    assert step <= 256
    assert -(-rows // step) == -(-rows // 256)
    assert plan.pair_chunk_rows(rows, 1, 8) == rows


@pytest.mark.parametrize("rows", [1, 767, 768, 769, 1536, 1537, 2000])
def test_affordable_chunks_are_larger_and_hold_a_multiple_of_64_rows(rows):
    step = plan.pair_chunk_rows(rows, columns := 16384, 8)
    chunks = -(-rows // step)
    assert chunks == -(-rows // 768)
    assert step == rows or step % 64 == 0
    assert chunks * step - rows < 64 * chunks
    assert step * columns * 8 <= 4 * plan.CHUNK_BYTES


@pytest.mark.parametrize("divergence", KINDS)
@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_match_the_reference(backend, dtype, size, divergence):
    hidden = torch.full((5, 4), 50.0, dtype=dtype)
    weights = [(torch.rand(301, 4) * size / 200).to(dtype) for _ in range(2)]
    check((hidden, weights[0], hidden, weights[1]), None, divergence=divergence, reduction="none", upstream="random")


@pytest.mark.parametrize("divergence", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_models_have_zero_divergence(backend, dtype, divergence):
    hidden, weight = torch.randn(9, 8).to(dtype), (3 * torch.randn(3000, 8)).to(dtype)
    own = [t.clone().requires_grad_() for t in (hidden, weight)]
    rows = linear_kl(*own, hidden, weight, divergence=divergence, beta=0.3, reduction="none")
    assert float(rows.detach().abs().max()) < 1e-12
    for gradient in torch.autograd.grad(rows.sum(), own):
        assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("divergence", KINDS)
def test_small_divergences_are_not_lost(backend, divergence):
    """1e-9 nats at logits of 30: p (log p - log q) alone would be lost in terms of 1e-6 that nearly cancel."""
    hidden, weight = torch.randn(50, 16), torch.randn(3000, 16) * 2
    near = weight + 2e-5 * torch.randn(3000, 16)
    operands = (hidden, near, hidden, weight)
    got = linear_kl(*operands, divergence=divergence, reduction="none")
    want = reference.linear_kl(*operands, divergence=divergence, reduction="none")
    naive = dense(operands, divergence=divergence, reduction="none")
    assert (got >= 0).all()
    assert float(want.median()) < 1e-8
    assert error(got, want) < 0.05 * error(naive, want)


@pytest.mark.parametrize("divergence", KINDS)
def test_flat_peaked_and_rising_rows_match_the_reference(backend, divergence):
    """Peaks at either end of a row, and scores that rise or fall all along it, against each other."""
    rise = torch.linspace(0, 30, 700)
    rows = torch.stack([torch.zeros(700), rise, rise.flip(0), rise / 20, torch.zeros(700), torch.zeros(700)])
    rows[4, 3] = rows[5, -2] = 25
    student, teacher = (torch.cartesian_prod(torch.arange(6), torch.arange(6))[:, side] for side in (0, 1))
    operands = (torch.eye(6)[student], rows.T.contiguous(), torch.eye(6)[teacher], rows.T.contiguous())
    check(operands, None, divergence=divergence, reduction="none", upstream="random")
    got = linear_kl(*operands, divergence=divergence, reduction="none")
    want = reference.linear_kl(*operands, divergence=divergence, reduction="none")
    assert (got[student == teacher] == 0).all()
    assert error(got / want.clamp(min=1), want / want.clamp(min=1)) < 1e-6


@pytest.mark.parametrize("beta", [1e-9, 1e-3, 0.5, 0.999, 1 - 1e-9])
def test_every_beta_matches_the_reference(backend, beta):
    """Both distributions where they agree, where one is a little larger, and where either vanishes."""
    teacher = torch.tensor([[0.0, -0.3, -1.0, -20.0, -200.0, 3.0, 0.1]])
    student = torch.tensor([[0.0, -0.31, -3.0, -200.0, -20.0, 2.0, 0.1001]])
    leaves = [t.requires_grad_() for t in (student, torch.eye(7), teacher, torch.eye(7))]
    got, true = linear_kl(*leaves, divergence="js", beta=beta), exact(*leaves)
    want = reference.linear_kl(*true, divergence="js", beta=beta)
    assert got.item() == pytest.approx(want.item(), rel=2e-6)
    for g, t in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, true), strict=True):
        assert error(g, t) <= 2e-6 * float(t.abs().max())


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_two_outcomes_of_every_ratio_match_the_reference(backend, beta):
    """From nearly equal to far apart. The C++ kernel loses no digit to the small ratios, expm1 in float32 a few."""
    apart = torch.linspace(-6, 6, 240)[:, None]
    operands = (torch.zeros(240, 1), torch.eye(2)[:, :1], apart, torch.eye(2)[:, :1])
    got = linear_kl(*operands, divergence="js", beta=beta, reduction="none")
    want = reference.linear_kl(*operands, divergence="js", beta=beta, reduction="none")
    assert float(((got - want) / want).abs().max()) < (1e-6 if backend == "cpu" else 2e-5)


def test_two_outcomes_match_a_hand_calculation(backend):
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 1.0]]).log()
    operands = (student, torch.eye(2), teacher, torch.eye(2))
    log = torch.tensor([2.0, 3.0, 5.0]).log().tolist()
    forward, reverse = 0.75 * (log[1] - log[0]) - 0.25 * log[0], log[0] - 0.5 * log[1]
    assert linear_kl(*operands).item() == pytest.approx(forward, rel=1e-6)
    assert linear_kl(*operands, divergence="reverse").item() == pytest.approx(reverse, rel=1e-6)
    teacher_to_m = 0.75 * (log[1] + log[0] - log[2]) + 0.25 * (log[0] - log[1])  # m = (5/8, 3/8) at beta = ½
    student_to_m = 0.5 * (2 * log[0] - log[2]) + 0.5 * (2 * log[0] - log[1])
    by_hand = 0.5 * teacher_to_m + 0.5 * student_to_m
    assert linear_kl(*operands, divergence="js").item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("operand", [0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("divergence", KINDS)
def test_non_finite_operands_give_nan(backend, divergence, bad, operand):
    operands = leaves(columns=50)
    with torch.no_grad():
        operands[operand][2, 1] = bad
    rows = linear_kl(*operands, divergence=divergence, reduction="none")
    assert rows.isnan().tolist() == [False, False, True, False, False, False]
    for name, gradient in zip(NAMES, torch.autograd.grad(rows.sum(), operands), strict=True):
        touched = gradient[2] if "hidden" in name else gradient
        assert touched.isnan().all()
    with torch.no_grad():
        operands[operand + 1][7, 0] = bad
    assert linear_kl(*operands, divergence=divergence, reduction="none").isnan().all()


def test_one_float64_operand_pair_is_enough():
    operands = [t.detach().double() if i < 2 else t.detach() for i, t in enumerate(leaves())]
    for divergence in KINDS:
        got, want = linear_kl(*operands, divergence=divergence), reference.linear_kl(*operands, divergence=divergence)
        assert got.dtype == torch.float64
        assert got.item() == pytest.approx(want.item(), rel=1e-5)


def test_backends_agree():
    if len(BACKENDS) < 2:
        pytest.skip("one backend only")
    for options in OPTIONS:
        for dtypes in ((torch.float32, torch.bfloat16), (torch.float16, torch.float32)):
            operands = [t.detach().to(dtypes[i // 2]) for i, t in enumerate(leaves(200, 300, (16, 24)))]
            results = []
            for backend in BACKENDS:
                with backends.use_backend(backend):
                    results.append(linear_kl(*operands, reduction="none", **options))
            assert error(*results) < 2e-5


@pytest.mark.slow
def test_a_large_vocabulary_matches_the_reference():
    """All rows at once, some of them looked at."""
    operands, seen = leaves(600, 128256, (32, 32), frozen=NAMES[1:]), torch.tensor([0, 199, 200, 201, 400, 599])
    few = [operands[0].detach()[seen].requires_grad_(), operands[1], operands[2][seen], operands[3]]
    for divergence in KINDS:
        got = linear_kl(*operands, divergence=divergence, reduction="none")
        (gradient,) = torch.autograd.grad(got.sum(), operands[0])
        true = exact(*few)
        want, rough = (
            f(divergence=divergence, reduction="none")
            for f in (partial(reference.linear_kl, *true), partial(dense, few))
        )
        largest = max(largest_logit(reference.logits(*true[i : i + 2])) for i in (0, 2))
        assert_contract("value", got[seen], rough, want, largest)
        (theirs,), (exactly,) = (torch.autograd.grad(v.sum(), x[0]) for v, x in ((rough, few), (want, true)))
        assert_contract("d_student_hidden", gradient[seen], theirs, exactly, float(operands[1].abs().max()))
