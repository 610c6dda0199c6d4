"""Public ops against dense float64, on ragged shapes of several tiles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from triton.runtime.jit import JITFunction

from main_kernels import (
    info_nce,
    linear_cross_entropy,
    linear_kl,
    mutual_information_bounds,
    pair_scores,
    reference,
    sigmoid_loss,
    token_logprobs,
)
from main_kernels.backends.triton import backend, fused, launch
from main_kernels.sweep import products, sweep

from .conftest import launched

ROWS, COLUMNS, WIDTH = 70, 130, 40
TAU = WIDTH**0.5


def draw(rows=ROWS, columns=COLUMNS, width=WIDTH, dtype=torch.bfloat16):
    """Operands that need a gradient."""
    return [torch.randn(n, width).to(dtype).cuda().requires_grad_() for n in (rows, columns)]


def compare(call, dense, operands, bound=2e-2):
    """The value and the gradients of a call with those of a dense float64 one."""
    value = call(*operands)
    upstream = torch.rand(value.shape)
    got = [value.detach(), *torch.autograd.grad(value, operands, upstream.to(value))]
    doubles = [x.detach().double().requires_grad_() for x in operands]
    value = dense(*doubles)
    want = [value.detach(), *torch.autograd.grad(value, doubles, upstream.to(value))]
    for name, a, b in zip(("value", "first", "second"), got, want, strict=True):
        assert a.isfinite().all(), name
        assert float((a.double() - b).norm() / b.norm()) < bound, name


def targets_of(rows=ROWS, columns=COLUMNS):
    return torch.arange(rows, dtype=torch.int64).cuda() * 7 % columns


IDS = torch.arange(ROWS, dtype=torch.int64) // 3


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"workspace_bytes": 0}, id="recomputed"),
        pytest.param({}, id="kept"),
        pytest.param({"workspace_bytes": 0, "pair_ids": IDS}, id="ids", marks=pytest.mark.slow),
        pytest.param(
            {"workspace_bytes": 0, "pair_ids": IDS, "label_smoothing": 0.1}, id="smoothed ids", marks=pytest.mark.slow
        ),
    ],
)
def test_info_nce(architecture, options):
    operands = draw(ROWS, ROWS)
    options["temperature"] = TAU
    mine = {**options, "pair_ids": IDS.cuda()} if "pair_ids" in options else options
    dense = {k: v for k, v in options.items() if k != "workspace_bytes"}
    compare(lambda q, k: info_nce(q, k, **mine), lambda q, k: reference.info_nce(q, k, **dense), operands)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28])
def test_info_nce_in_other_dtypes(workspace_bytes, dtype):
    compare(
        lambda q, k: info_nce(q, k, temperature=TAU, workspace_bytes=workspace_bytes),
        lambda q, k: reference.info_nce(q, k, temperature=TAU),
        draw(ROWS, ROWS, dtype=dtype),
    )


@pytest.mark.slow
def test_sigmoid_loss(architecture):
    scale, bias = torch.tensor(0.5), torch.tensor(-1.0)
    learned = bias.cuda().requires_grad_()  # sums of sigmoid as well
    compare(
        lambda q, k: sigmoid_loss(
            q / TAU, k, logit_scale=scale.cuda(), logit_bias=learned, reduction="none", workspace_bytes=0
        ),
        lambda q, k: reference.sigmoid_loss(q / TAU, k, logit_scale=scale, logit_bias=bias, reduction="none"),
        draw(ROWS, ROWS),
    )


@pytest.mark.slow
def test_token_logprobs_trained():
    targets = targets_of()
    compare(
        lambda h, w: token_logprobs(h / TAU, w, targets, ignore_index=None),
        lambda h, w: -F.cross_entropy(h / TAU @ w.T, targets.long(), reduction="none"),
        draw(),
    )


@pytest.mark.slow
def test_token_logprobs_scored(architecture):
    hidden, weight = (x.detach() for x in draw())
    bias = torch.arange(COLUMNS) / COLUMNS
    options = {"softcap": 5.0, "temperature": TAU, "return_stats": True}
    with torch.no_grad():
        got = token_logprobs(hidden, weight, targets_of(), bias=bias.cuda(), ignore_index=None, **options)
    raw = hidden.double() @ weight.double().T + bias.double()
    log_p = (5 * (raw / 5).tanh() / TAU).log_softmax(1)
    want = log_p.gather(1, targets_of()[:, None])[:, 0]
    assert float((got[0].double() - want).abs().max()) < 1e-4
    assert float((got.entropy.double() + (log_p.exp() * log_p).sum(1)).abs().max()) < 1e-4


@pytest.mark.slow
def test_linear_cross_entropy():
    targets, options = targets_of(), {"label_smoothing": 0.1, "z_loss": 1e-3}
    targets[::5] = -100
    compare(
        lambda h, w: linear_cross_entropy(h, w, targets, **options),
        lambda h, w: reference.linear_cross_entropy(h, w, targets, **options),
        draw(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["forward", "js"])
def test_linear_kl(divergence):
    teacher = [x.detach() for x in draw()]
    compare(
        lambda h, w: linear_kl(h, w, *teacher, divergence=divergence, temperature=TAU),
        lambda h, w: reference.linear_kl(h, w, *(x.double() for x in teacher), divergence=divergence, temperature=TAU),
        draw(),
        3e-2,
    )


@pytest.mark.parametrize("ids", [None, pytest.param(IDS, id="ids", marks=pytest.mark.slow)])
def test_pair_scores(architecture, ids):
    operands = [x.detach() for x in draw(ROWS, ROWS)]
    got = pair_scores(*operands, temperature=TAU, pair_ids=None if ids is None else ids.cuda())
    want = reference.pair_scores(*(x.double() for x in operands), temperature=TAU, pair_ids=ids)
    assert float((got.pmi.double() - want.pmi).abs().max()) < 1e-4
    assert torch.equal(got.rank_query.double(), want.rank_query.double())
    assert torch.equal(got.rank_key.double(), want.rank_key.double())


@pytest.mark.slow
def test_pair_scores_in_float32():
    """Whose kernels read scores that cuBLAS computed."""
    operands = [x.detach() for x in draw(ROWS, ROWS, dtype=torch.float32)]
    got = pair_scores(*operands, temperature=TAU)
    want = reference.pair_scores(*(x.double() for x in operands), temperature=TAU)
    assert float((got.pmi.double() - want.pmi).abs().max()) < 1e-4
    assert torch.equal(got.rank_key.double(), want.rank_key.double())


def test_mutual_information_bounds():
    """Quick, because the interpreter knows no constants: there a mask of the targets alone cannot be lost."""
    operands = [x.detach() for x in draw(ROWS, ROWS)]
    got = mutual_information_bounds(*operands, temperature=TAU)
    want = reference.mutual_information_bounds(*(x.double() for x in operands), temperature=TAU)
    for name, value in got.items():
        assert float((value.double() - want[name]).abs()) < 1e-4, name


@pytest.mark.slow
def test_targets_alone_can_be_masked(architecture):
    query, key = draw(ROWS, ROWS)
    got = sweep(query, key, scale=1 / TAU, targets=targets_of(ROWS, ROWS), keep_target=False, column_lse=True)
    scores = (query.detach().double() @ key.detach().double().T / TAU).cpu()
    off = scores.masked_fill(targets_of(ROWS, ROWS).cpu()[:, None] == torch.arange(ROWS), -torch.inf)
    assert float((got.row_lse.detach().cpu() - off.logsumexp(1)).abs().max()) < 1e-4
    assert float((got.column_lse.detach().cpu() - off.logsumexp(0)).abs().max()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("wants", [{"row_lse": False, "softplus": True}, {"column_lse": True}], ids=str)
def test_ids_mask_without_targets(wants):
    query, key = draw(ROWS, ROWS)
    got = sweep(query, key, row_ids=IDS.cuda(), column_ids=IDS.cuda(), **wants)
    leaves = [x.detach().double().cpu().requires_grad_() for x in (query, key)]
    scores = (leaves[0] @ leaves[1].T).masked_fill(IDS[:, None] == IDS, -torch.inf)
    if "softplus" in wants:
        mine, want = got.softplus, torch.logaddexp(scores, scores.new_zeros(())).sum(1)
    else:
        mine, want = got.row_lse + got.column_lse, scores.logsumexp(1) + scores.logsumexp(0)
    assert float((mine.detach().cpu() - want).abs().max()) < 1e-5 * float(want.abs().max())
    grads = torch.autograd.grad(mine.sum(), (query, key)), torch.autograd.grad(want.sum(), leaves)
    for one, true in zip(*grads, strict=True):
        assert float((one.cpu() - true).abs().max()) < 2e-2 * float(true.abs().max())


@pytest.mark.slow
def test_a_column_far_below_its_tile_is_exact(architecture):
    query, key = (torch.rand(ROWS, 16) + 1 for _ in range(2))
    key[5] *= -1
    compare(
        lambda q, k: info_nce(q, k, temperature=0.5, workspace_bytes=0),
        lambda q, k: reference.info_nce(q, k, temperature=0.5),
        [x.bfloat16().cuda().requires_grad_() for x in (query, key)],
    )


@pytest.mark.slow
def test_a_gradient_in_slices_of_a_tile(architecture, monkeypatch):
    """As with so many terms that no whole tile has the registers for them."""
    monkeypatch.setattr(fused, "_whole_pressure", lambda *_: 1000)
    compare(
        lambda q, k: info_nce(q, k, temperature=TAU, workspace_bytes=0),
        lambda q, k: reference.info_nce(q, k, temperature=TAU),
        draw(ROWS, ROWS),
    )


@pytest.mark.slow
def test_gradients_in_planes_match(monkeypatch):
    """As with a torch whose products cannot leave float32."""
    monkeypatch.setattr(products, "leaves_float32", lambda _: False)
    targets = targets_of()
    compare(
        lambda h, w: linear_cross_entropy(h, w, targets, ignore_index=None),
        lambda h, w: F.cross_entropy(h @ w.T, targets.long()),
        draw(),
    )


@pytest.mark.slow
def test_every_kernel_was_executed():
    """Of those above, which run first."""
    launchers = (vars(module).values() for module in (backend, fused, launch))
    kernels = {each.__name__ for values in launchers for each in values if isinstance(each, JITFunction)}
    assert len(kernels) > 10
    assert kernels <= launched, kernels - launched
