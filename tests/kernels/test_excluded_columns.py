"""A bias of -inf excludes a token: all other tokens keep finite values and exact gradients, whatever is requested."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from main_kernels import linear_cross_entropy, reference, sequence_logprobs, token_logprobs
from main_kernels.sweep import CrossEntropy, sweep

from .contract import error, exact

ROWS, VOCABULARY = 20, 1100  # more than one block of a walk
OPTIONS = [
    {},
    {"label_smoothing": 0.1, "z_loss": 0.01},
    {"softcap": 5.0, "label_smoothing": 0.1},
    {"token_weights": True, "z_loss": 0.1},
]


def drawn(dtype=torch.float32):
    hidden, weight = (torch.randn(n, 8).to(dtype).requires_grad_() for n in (ROWS, VOCABULARY))
    bias = torch.randn(VOCABULARY)
    bias[torch.arange(VOCABULARY) % 3 == 1] = -torch.inf
    bias[512:] = -torch.inf  # a whole block
    targets = torch.arange(ROWS) * 3
    targets[4] = -100
    return hidden, weight, bias.requires_grad_(), targets


def assert_close(got, want):
    for mine, true in zip(got, want, strict=True):
        assert torch.isfinite(mine).all()
        assert error(mine, true) < 1e-5 * max(1.0, float(true.detach().abs().max()))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_linear_cross_entropy_leaves_excluded_columns_out(backend, options, reduction):
    hidden, weight, bias, targets = drawn()
    options = {
        **options,
        **({"token_weights": torch.rand(ROWS)} if "token_weights" in options else {}),
        "reduction": reduction,
    }
    leaves = exact(hidden, weight, bias)
    got = linear_cross_entropy(hidden, weight, targets, bias=bias, **options)
    want = reference.linear_cross_entropy(*leaves[:2], targets, bias=leaves[2], **options)
    up = torch.arange(want.numel()).view(want.shape) + 1.0
    mine = torch.autograd.grad(got, (hidden, weight, bias), up)
    assert_close([got, *mine], [want, *torch.autograd.grad(want, leaves, up.double())])
    if not options.keys() & {"label_smoothing", "softcap", "token_weights"}:
        dense = F.cross_entropy(hidden @ weight.T + bias, targets, reduction=reduction)
        assert_close([got, *mine], [dense, *torch.autograd.grad(dense, (hidden, weight, bias), up)])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(
    ("lowest", "softcap"), [(-torch.inf, None), (-torch.inf, 5.0), (torch.finfo(torch.float32).min, None)]
)
def test_token_statistics_leave_excluded_columns_out(backend, lowest, softcap, temperature):
    """The lowest finite bias leaves out as well, where the temperature takes it to -inf."""
    hidden, weight, bias, targets = drawn()
    bias = bias.detach().clamp(min=lowest).requires_grad_()
    options = {"softcap": softcap, "temperature": temperature}
    leaves = exact(hidden, weight, bias)
    got = token_logprobs(hidden, weight, targets, bias=bias, return_stats=True, **options)
    want = reference.token_logprobs(*leaves[:2], targets, bias=leaves[2], **options)
    assert torch.equal(got.rank, want.rank)
    up = torch.randn(2, ROWS)
    mine, true = ((up.to(s.entropy) * torch.stack([s.logprobs, s.entropy])).sum() for s in (got, want))
    gradients = torch.autograd.grad(mine, (hidden, weight, bias)), torch.autograd.grad(true, leaves)
    assert_close([got.logprobs, got.entropy, *gradients[0]], [want.logprobs, want.entropy, *gradients[1]])
    plain = token_logprobs(hidden, weight, targets, bias=bias, **options)
    sequences = sequence_logprobs(hidden, weight, targets, torch.tensor([0, 7, ROWS]), bias=bias, **options)
    totals = torch.stack([want.logprobs[:7].sum(), want.logprobs[7:].sum()])
    assert_close([plain, sequences], [want.logprobs, totals])


def test_excluded_columns_are_left_out_of_every_sum_and_gradient(backend):
    hidden, weight, bias, _ = drawn()
    scale = torch.tensor(0.7, requires_grad=True)
    leaves = exact(hidden, weight, bias, scale)
    seen = (bias > -torch.inf).expand(ROWS, VOCABULARY)
    known = (leaves[0] @ leaves[1].T + leaves[2].masked_fill(~seen[0], 0)) * leaves[3]
    scores = known.masked_fill(~seen, -torch.inf)
    for workspace_bytes in (0, 1 << 20):
        got = sweep(
            hidden, weight, scale=scale, bias=bias, column_lse=True, entropy=True, ranks=True, logit_sums=True,
            softplus=True, clip=2.0, workspace_bytes=workspace_bytes,
        )  # fmt: skip
        softplus = torch.where(seen, torch.logaddexp(known, known.new_zeros(())), 0).sum(1)
        wants = [scores.logsumexp(1), known.where(seen, 0).sum(1), known.where(seen, 0).sum(0), softplus]
        mines = [got.row_lse, got.row_logits, got.column_logits, got.softplus]
        clipped = torch.where(seen, known.clamp(-2, 2), -torch.inf).logsumexp(1)
        assert_close([*mines, got.clipped], [*wants, clipped])
        columns = seen.any(0)
        assert torch.equal(got.column_lse == -torch.inf, ~columns)
        assert_close([got.column_lse[columns]], [known.logsumexp(0)[columns]])
        mine = sum(m.sum() for m in mines) + got.column_lse[columns].sum()
        true = sum(w.sum() for w in wants) + known.logsumexp(0)[columns].sum()
        gradients = torch.autograd.grad(mine, (hidden, weight, bias, scale))
        assert_close(gradients, torch.autograd.grad(true, leaves, retain_graph=True))


def test_an_excluded_target_gives_an_infinite_loss(backend):
    """Its probability is 0; its gradient is torch's, finite."""
    hidden, weight, bias, targets = drawn()
    targets[2] = 1
    got = token_logprobs(hidden, weight, targets, bias=bias)
    stats = token_logprobs(hidden, weight, targets, bias=bias, return_stats=True)
    for logprobs in (got, stats.logprobs):
        assert (logprobs == -torch.inf).tolist() == [i == 2 for i in range(ROWS)]
        mine = torch.autograd.grad(logprobs.sum(), (hidden, weight, bias), retain_graph=True)
        dense = -F.cross_entropy(hidden @ weight.T + bias, targets, reduction="none").sum()
        assert_close(mine, torch.autograd.grad(dense, (hidden, weight, bias)))
    assert stats.rank[2] == (bias > -torch.inf).sum()
    assert linear_cross_entropy(hidden, weight, targets, bias=bias, label_smoothing=0.1) == torch.inf


def test_excluding_all_columns_matches_the_reference(backend):
    """Log-probability -inf, entropy and rank 0, gradients 0; the sweep's log-sum-exp is that of nothing."""
    hidden, weight, _, targets = drawn()
    bias = torch.full((VOCABULARY,), -torch.inf, requires_grad=True)
    got = token_logprobs(hidden, weight, targets, bias=bias, return_stats=True)
    counted = targets >= 0
    for logprobs in (got.logprobs, token_logprobs(hidden, weight, targets, bias=bias)):
        assert (logprobs[counted] == -torch.inf).all()
        for gradient in torch.autograd.grad(
            logprobs.sum() + got.entropy.sum(), (hidden, weight, bias), retain_graph=True
        ):
            assert not gradient.any()
    assert not got.entropy.any()
    assert not got.rank.any()
    swept = sweep(hidden, weight, bias=bias, targets=targets.clamp(min=0), loss=CrossEntropy(z_loss=0.1), softplus=True)
    assert (swept.row_lse == -torch.inf).all()
    assert (swept.loss == torch.inf).all()
    assert not swept.softplus.any()


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_operands_still_give_nan(backend, softcap, bad):
    """In an operand, with a bias or a cap that could hide them; in the bias all but -inf."""
    hidden, weight, bias, targets = (t.detach() for t in drawn())
    hidden, weight, targets = hidden[:6].clone(), weight.clone(), targets.abs()[:6].clamp(max=9)
    for some in (bias, None):
        spoilt = hidden.clone()
        spoilt[2] = bad
        options = {"bias": some, "softcap": softcap}
        got = token_logprobs(spoilt, weight, targets, return_stats=True, **options)
        for vector in (got.logprobs, got.entropy, token_logprobs(spoilt, weight, targets, **options)):
            assert vector.isnan().tolist() == [i == 2 for i in range(6)]
    weight[7] = bad
    assert token_logprobs(hidden, weight, targets, bias=bias, softcap=softcap).isnan().all()
    if bad != -torch.inf:
        weight[7] = 0
        bias[7] = bad
        got = token_logprobs(hidden, weight, targets, bias=bias)
        assert got.isnan().all()
