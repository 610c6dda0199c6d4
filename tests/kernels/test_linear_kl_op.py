"""What every op promises, of linear_kl: gradients, compilation, products, masks, refusals, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck

from main_kernels import linear_kl

from .contract import DEVICE, error
from .divergences import MASK, NAMES, OPTIONS, leaves, trained
from .test_ops import multiply_adds


@pytest.mark.parametrize(("reduction", "mask"), [("none", None), ("mean", MASK)])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_passes_in_float64(options, reduction, mask):
    operands = leaves(columns=7, dtype=torch.float64)
    assert gradcheck(lambda *o: linear_kl(*o, token_mask=mask, reduction=reduction, **options), operands)


@pytest.mark.one_build
@pytest.mark.parametrize("is_cast", [False, True])
@pytest.mark.parametrize(("dtype", "beta", "mask"), [(torch.float32, 0.3, MASK), (torch.bfloat16, None, None)])
def test_opcheck_passes(backend, dtype, beta, mask, is_cast):
    operands = leaves(dtype=dtype)
    sources = [None] * 4
    if is_cast:
        operands, sources = [t.detach().to(torch.float16) for t in operands], operands
    arguments = (*operands, *sources, 2.0, beta, mask, True, True, True, True)
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
    exact = [t.detach().float().requires_grad_() for t in narrow]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = linear_kl(*operands, **options)
    want = linear_kl(*narrow, **options)
    assert out.dtype == torch.float32
    assert torch.equal(out, want)
    theirs = torch.autograd.grad(linear_kl(*exact, **options), exact)
    rounded = torch.autograd.grad(want, narrow)
    for a, b, c in zip(torch.autograd.grad(out, operands), theirs, rounded, strict=True):
        assert error(a, b) <= 1e-6 * float(b.abs().max())
        assert torch.equal(a.bfloat16(), c)


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


@pytest.mark.parametrize("weights", [torch.ones(6, device=DEVICE), torch.linspace(1, 2, 6, device=DEVICE)])
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
    with pytest.raises((ValueError, TypeError), match=words):
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
