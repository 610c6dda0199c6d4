"""linear_kl against the float64 reference, and what every op promises: rules, compilation, products, masks, memory."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from main_kernels import backends, linear_kl, reference
from main_kernels.sweep import plan

from .contract import (
    BACKENDS,
    DEVICE,
    DTYPES,
    Matrices,
    assert_contract,
    error,
    exact,
    largest_logit,
    matrices,
    seeded,
)
from .test_ops import multiply_adds

KINDS = ("forward", "reverse", "js")
NAMES = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight")
OPTIONS = [{"divergence": "forward"}, {"divergence": "reverse", "temperature": 0.7}, {"divergence": "js", "beta": 0.3}]


def logits(hidden, weight, temperature):
    """As people write them: the product in the input's dtype, everything after it in float32."""
    z = hidden.float() @ weight.float().T if hidden.dtype == torch.float16 else hidden @ weight.T
    return z.to(torch.promote_types(hidden.dtype, torch.float32)) / temperature


def dense(operands, *, divergence, beta=0.5, temperature=1.0, token_mask=None, reduction="mean"):
    student, teacher = (logits(*operands[i : i + 2], temperature).log_softmax(1) for i in (0, 2))
    mixture = torch.logaddexp(
        teacher + torch.tensor(beta).log(),
        student + torch.tensor(1 - beta).log(),
    )

    def kl(p, q):
        return (p.exp() * (p - q)).sum(1)

    rows = {
        "forward": kl(teacher, student),
        "reverse": kl(student, teacher),
        "js": beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture),
    }[divergence]
    counts = torch.ones(len(rows), dtype=torch.bool) if token_mask is None else token_mask
    rows = torch.where(counts, rows, 0)
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counts.sum().clamp(min=1)}[reduction]


def draw(drawn: Matrices, teacher_dtype, teacher_width, *, masked="some", seed=1):
    student = drawn.draw()
    fields = {**drawn.__dict__, "dtype": teacher_dtype, "width": teacher_width, "seed": drawn.seed + seed}
    operands = (*student, *Matrices(**fields).draw())
    generator = seeded(drawn.seed + 2)
    mask = {
        "none": None,
        "some": torch.rand(drawn.rows, generator=generator) < 0.7,
        "all": torch.zeros(drawn.rows, dtype=torch.bool),
    }[masked]
    return operands, mask


def check(operands, mask, *, upstream="equal", frozen=(), **options):
    options["token_mask"] = mask
    names = [name for name in NAMES if name not in frozen]
    operands = [t.detach().requires_grad_(name in names) for name, t in zip(NAMES, operands, strict=True)]
    got = linear_kl(*operands, **options)
    leaves = exact(*operands)
    want, rough = reference.linear_kl(*leaves, **options), dense(operands, **options)
    temperature = options.get("temperature", 1.0)
    z = [reference.logits(*leaves[i : i + 2], temperature=temperature) for i in (0, 2)]
    largest = max(map(largest_logit, z))
    rows = len(operands[0]) if options.get("reduction") == "sum" else 1
    assert got.dtype == (torch.float64 if torch.float64 in {t.dtype for t in operands} else torch.float32)
    assert_contract("value", got, rough, want, largest * rows)

    generator = seeded(5)
    up = torch.randn(want.shape, generator=generator) if upstream == "random" else torch.full(want.shape, -1 / 7)
    mine, true, theirs = (
        torch.autograd.grad(out, [t for t in some if t.requires_grad], up.to(out.dtype))
        for out, some in ((got, operands), (want, leaves), (rough, operands))
    )
    ratio = float((z[0].log_softmax(1) - z[1].log_softmax(1)).detach().abs().max())
    factor = float(up.abs().max()) / temperature * max(1.0, ratio)  # the largest entry of G, or near it
    partner = dict(zip(NAMES, (operands[1], operands[0], operands[3], operands[2]), strict=True))
    for name, g, r, t in zip(names, mine, theirs, true, strict=True):
        assert_contract(f"d_{name}", g, r, t, factor * float(partner[name].detach().abs().max()))


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
    drawn = Matrices(600, 1300, 48, dtypes[0], 0.4, False, 5)
    computes = [plan.make_plan(600, 1300, 40, dtype).compute for dtype in dtypes]
    assert computes == (list(dtypes) if fast_bfloat16 else [torch.float32, torch.float32])
    assert plan.pair_chunk_rows(600, 1300, sum(compute.itemsize for compute in computes)) <= 300
    check(*draw(drawn, dtypes[1], 40), upstream=upstream, reduction="none", **options)


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 511, 513, 1000])
def test_chunks_cover_the_rows_evenly(rows):
    step = plan.pair_chunk_rows(rows, 1 << 20, 8)
    assert step <= 256
    assert -(-rows // step) == -(-rows // 256)
    assert plan.pair_chunk_rows(rows, 1, 8) == rows


@pytest.mark.parametrize("rows", [1, 383, 384, 385, 768, 769, 1000])
def test_affordable_chunks_are_larger_and_hold_a_multiple_of_64_rows(rows):
    step = plan.pair_chunk_rows(rows, columns := 16384, 8)
    chunks = -(-rows // step)
    assert chunks == -(-rows // 384)
    assert step == rows or step % 64 == 0
    assert chunks * step - rows < 64 * chunks
    assert step * columns * 8 <= 2 * plan.CHUNK_BYTES


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


def leaves(rows=6, columns=11, widths=(5, 3), dtype=torch.float32, frozen=()):
    shapes = ((rows, widths[0]), (columns, widths[0]), (rows, widths[1]), (columns, widths[1]))
    return [
        torch.randn(shape, dtype=dtype, requires_grad=name not in frozen)
        for name, shape in zip(NAMES, shapes, strict=True)
    ]


def trained(operands):
    return [t for t in operands if t.requires_grad]


MASK = torch.tensor([True, False, True, True, False, True], device=DEVICE)


@pytest.mark.parametrize(("reduction", "mask"), [("none", None), ("mean", MASK)])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_passes_in_float64(options, reduction, mask):
    operands = leaves(columns=7, dtype=torch.float64)
    assert gradcheck(lambda *o: linear_kl(*o, token_mask=mask, reduction=reduction, **options), operands)


@pytest.mark.one_build
@pytest.mark.parametrize(("dtype", "beta", "mask"), [(torch.float32, 0.3, MASK), (torch.bfloat16, None, None)])
def test_opcheck_passes(backend, dtype, beta, mask):
    arguments = (*leaves(dtype=dtype), 2.0, beta, mask, True, True, True, True)
    # opcheck reads the saved state after the backward, so it must not be overwritten
    torch.library.opcheck(torch.ops.main_kernels.divergence.default, (*arguments, False, backend))


@pytest.mark.one_build
@pytest.mark.parametrize(
    ("options", "frozen", "reduction"),
    [(OPTIONS[0], NAMES[2:], "mean"), (OPTIONS[1], (), "none"), (OPTIONS[2], (), "mean")],
)
def test_compiles_with_fullgraph(backend, options, frozen, reduction):
    torch._dynamo.reset()
    operands = leaves(frozen=frozen)

    def call(*o):
        return linear_kl(*o, token_mask=MASK, reduction=reduction, **options) * torch.linspace(1, 2, 6)

    results = []
    for run in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        out = run(*operands).sum()
        results.append((out, *torch.autograd.grad(out, trained(operands))))
    for eager, graph in zip(*results, strict=True):
        assert error(eager, graph) < 1e-5


@pytest.mark.parametrize(
    ("options", "dtype"), [(OPTIONS[0], torch.bfloat16), (OPTIONS[1], torch.float32), (OPTIONS[2], torch.bfloat16)]
)
def test_runs_and_thread_counts_give_the_same_bits(backend, options, dtype):
    operands = leaves(300, 700, (64, 48), dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            out = linear_kl(*operands, **options)
            results.append((out.detach(), *torch.autograd.grad(out, operands)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))
    for other in (results[0], results[3]):  # torch.mm itself may sum differently with another thread count
        for a, b in zip(results[1], other, strict=True):
            assert error(a, b) <= (1e-5 if dtype == torch.float32 else 1e-2) * max(1.0, float(a.abs().max()))


@pytest.mark.one_build
@pytest.mark.parametrize("options", OPTIONS)
def test_autocast_casts_the_operands_and_nothing_else(backend, options):
    operands = leaves(16, 24, (8, 5))
    narrow = [t.detach().bfloat16().requires_grad_() for t in operands]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = linear_kl(*operands, **options)
    want = linear_kl(*narrow, **options)
    assert out.dtype == torch.float32
    assert torch.equal(out, want)
    for a, b in zip(torch.autograd.grad(out, operands), torch.autograd.grad(want, narrow), strict=True):
        assert torch.equal(a, b.float())


@pytest.mark.one_build
@pytest.mark.parametrize(
    ("divergence", "trains", "reduction", "products"),
    [
        ("forward", (), "mean", 2),
        ("forward", NAMES[:2], "mean", 4),
        ("reverse", NAMES[:2], "sum", 4),
        ("js", NAMES[:2], "mean", 4),
        ("forward", NAMES[:1], "none", 3),
        ("reverse", NAMES[1:2], "sum", 3),
        ("js", NAMES[:2], "none", 7),
        ("forward", NAMES[2:], "mean", 4),
        ("js", NAMES, "mean", 6),
    ],
)
def test_only_needed_products_are_computed(backend, divergence, trains, reduction, products):
    """The floors, counted; masked rows are not multiplied, and nothing is made for a gradient nobody wants."""
    operands = leaves(64, 80, (32, 32), frozen=set(NAMES) - set(trains))
    mask = torch.arange(64) % 4 == 0

    def run() -> None:
        loss = linear_kl(*operands, divergence=divergence, token_mask=mask, reduction=reduction)
        if trains:
            (loss * torch.rand(loss.shape)).sum().backward()

    assert multiply_adds(run) == products * 16 * 80 * 32


@pytest.mark.parametrize("weights", [torch.ones(6), torch.linspace(1, 2, 6)])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_second_backward_gives_the_same_bits(backend, options, weights):
    operands = leaves()
    loss = (linear_kl(*operands, token_mask=MASK, reduction="none", **options) * weights).sum()
    first = torch.autograd.grad(loss, operands, retain_graph=True)
    kept = [g.clone() for g in first]
    first[0].fill_(7.0)  # the gradients handed out belong to the caller alone
    for a, b in zip(kept, torch.autograd.grad(loss, operands), strict=True):
        assert torch.equal(a, b)


def test_values_and_gradients_of_masked_rows_are_ignored(backend):
    operands = leaves()
    with torch.no_grad():
        operands[0][1], operands[2][4] = torch.nan, torch.inf
    rows = linear_kl(*operands, token_mask=MASK, reduction="none")
    up = torch.where(MASK, torch.ones(6), torch.nan)
    got = torch.autograd.grad(rows, operands, up)
    short = [operands[0][MASK], operands[1], operands[2][MASK], operands[3]]
    want = linear_kl(*short, reduction="none")
    assert torch.equal(rows[MASK], want)
    assert not rows[~MASK].any()
    for mine, theirs in zip(got, torch.autograd.grad(want.sum(), operands), strict=True):
        assert torch.equal(mine, theirs)


def test_the_mean_is_over_the_unmasked_rows(backend):
    operands = leaves()
    rows = linear_kl(*operands, token_mask=MASK, reduction="none")
    assert linear_kl(*operands, token_mask=MASK, reduction="sum").item() == rows.sum().item()
    assert linear_kl(*operands, token_mask=MASK).item() == pytest.approx(rows[MASK].mean().item(), rel=1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_fully_masked_input_gives_zero_in_the_graph(backend, reduction):
    operands = leaves()
    loss = linear_kl(*operands, token_mask=torch.zeros(6, dtype=torch.bool), reduction=reduction).sum()
    assert loss.item() == 0
    loss.backward()
    assert not any(t.grad.any() for t in operands)


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


H, W, J, X = torch.randn(4, 3), torch.randn(7, 3), torch.randn(4, 2), torch.randn(7, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linear_kl(H[0], W, J, X), r"student_hidden: expected .*, got shape \(3,\)"),
        (lambda: linear_kl(H, W[:, :2], J, X), "student_weight: expected 3 columns, got 2 columns"),
        (lambda: linear_kl(H, W.half(), J, X), "student_weight: expected .*, got dtype torch.float16"),
        (lambda: linear_kl(H, W, J.long(), X), "teacher_hidden: expected .*, got dtype torch.int64"),
        (lambda: linear_kl(H, W, J[:3], X), "teacher_hidden: expected 4 rows, .*, got 3 rows"),
        (lambda: linear_kl(H, W, J.to("meta"), X), "teacher_hidden: expected cpu, got device meta"),
        (lambda: linear_kl(H, W, J, W), "teacher_weight: expected 2 columns, got 3 columns"),
        (lambda: linear_kl(H, W, J, X[:5]), "teacher_weight: expected 7 rows, .*, got 5 rows"),
        (lambda: linear_kl(H, W, J, X.half()), "teacher_weight: expected torch.float32 .*, got dtype torch.float16"),
        (lambda: linear_kl(H, W, J, X.to("meta")), "teacher_weight: expected .*, got device meta"),
        (lambda: linear_kl(H, W, J, X, divergence="jsd"), "divergence: expected .*, got 'jsd'"),
        (lambda: linear_kl(H, W, J, X, divergence="js", beta=1.0), "beta: expected .*, got 1.0"),
        (lambda: linear_kl(H, W, J, X, divergence="js", beta=float("nan")), "beta: expected .*, got nan"),
        (lambda: linear_kl(H, W, J, X, temperature=0), "temperature: expected .*, got 0"),
        (lambda: linear_kl(H, W, J, X, token_mask=[True] * 4), "token_mask: expected a bool tensor, got list"),
        (
            lambda: linear_kl(H, W, J, X, token_mask=torch.ones(4)),
            "token_mask: expected a bool tensor, got torch.float32",
        ),
        (lambda: linear_kl(H, W, J, X, token_mask=MASK), r"token_mask: expected \(4,\), got shape \(6,\)"),
        (lambda: linear_kl(H, W, J, X, token_mask=MASK[:4].to("meta")), "token_mask: expected .*, got device meta"),
        (lambda: linear_kl(H, W, J, X, reduction="batchmean"), "reduction: expected .*, got 'batchmean'"),
    ],
)
def test_an_invalid_argument_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


LARGE = """
import sys, torch
from main_kernels import linear_kl
from measure import peak_over
rows, columns, width = map(int, sys.argv[1:])
small = [torch.randn(n, 8, requires_grad=i < 2) for i, n in enumerate((300, 999, 300, 999))]
linear_kl(*small).backward()
big = [torch.randn(n, width, requires_grad=i < 2) for i, n in enumerate((rows, columns, rows, columns))]
print(peak_over(lambda: linear_kl(*big).backward(), lambda: sum(t.grad.nbytes for t in big[:2])))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of resident memory is Linux's to tell")
@pytest.mark.parametrize(("rows", "fraction"), [(600, 0.75), (1200, 0.5)])
def test_a_large_vocabulary_stores_no_logits(rows, fraction):
    """Two chunks of at most 256 rows, whatever T: 262 MB. One float32 T x V is 308 MB at T = 600 and 616 at 1200, and
    the dense form holds six and more."""
    bench = Path(__file__).parents[2] / "bench"
    arguments = [sys.executable, "-c", LARGE, str(rows), "128256", "32"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=bench)
    assert float(done.stdout) * 1e6 < fraction * rows * 128256 * 4


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
