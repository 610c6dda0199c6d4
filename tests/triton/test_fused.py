"""The fused kernels under the interpreter, compared with the float64 reference.

float32 operands show the kernels' arithmetic alone; bfloat16 is what the backend supports. Shapes are large enough for
several chunks of several ragged tiles."""

from __future__ import annotations

import math

import pytest
import torch

from main_kernels import info_nce, pair_scores, reference, sigmoid_loss
from main_kernels.backends.structs import ScoreGradTerms, ScoreMap
from main_kernels.backends.triton import TritonBackend, configs, matmul_tile
from main_kernels.backends.triton.fused import TritonFused
from main_kernels.sweep import grad_buffer, plan, products, sweep

from ..kernels import test_contrastive as contrastive
from ..kernels import test_head_losses as head_losses
from ..kernels import test_token_logprobs as likelihood
from ..kernels.contract import Matrices, error, ulps


@pytest.fixture
def fused(request, backend, monkeypatch):
    """Fused walks for operands of any dtype, in chunks of 512 rows; how often each was made. Tiles come through
    descriptors; tests/ttir runs every kernel with loads as well."""
    monkeypatch.setattr(TritonFused, "supports", lambda self, dtype: True)
    monkeypatch.setattr(
        configs, "architecture", lambda device: 80 if getattr(request, "param", "descriptors") == "loads" else 90
    )
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    counts = {"reduce": 0, "score_grad": 0, "target_scores": 0}
    for name in counts:
        before = getattr(TritonFused, name)

        def counted(*args, name=name, before=before, **options):  # type: ignore[no-untyped-def]
            counts[name] += 1
            return before(*args, **options)

        monkeypatch.setattr(TritonFused, name, counted)
    return counts


LOADS_TOO = pytest.mark.parametrize("fused", ["loads", "descriptors"], indirect=True)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@DTYPES
@pytest.mark.parametrize(
    ("options", "workspace_bytes"),
    [
        ({}, 1 << 28),
        ({"ids": True, "label_smoothing": 0.1, "extra": "shared"}, 0),
        ({"direction": "query", "weighted": True}, 0),
    ],
    ids=["saved", "recomputed", "row_loss"],
)
def test_info_nce_matches_the_reference(fused, dtype, workspace_bytes, options):
    contrastive.check(
        Matrices(700, 700, 64, dtype, 0.3, False, 5), temperature=0.5, workspace_bytes=workspace_bytes, **options
    )
    saved_or_row_loss = workspace_bytes or options.get("direction")
    walks = 0 if saved_or_row_loss else 1  # kept scores are cuBLAS products
    assert fused == {"reduce": walks, "score_grad": 2 * walks, "target_scores": walks}


@DTYPES
@pytest.mark.parametrize("upstream", ["equal", "random"])
def test_token_logprobs_match_the_reference(fused, dtype, upstream):
    """A width that needs padding, masked rows, bias and softcap."""
    drawn = Matrices(600, 1500, 41, dtype, 0.6, False, 5)
    likelihood.check(drawn, bias_spread=0.5, softcap=3.0, masked="some", upstream=upstream)
    assert fused["reduce"] == fused["target_scores"] == 1


@DTYPES
def test_linear_cross_entropy_matches_the_reference(fused, dtype):
    drawn = Matrices(530, 1500, 48, dtype, 0.6, True, 5)
    head_losses.check(drawn, weights="given", label_smoothing=0.1, z_loss=1e-3, biased=True)


@LOADS_TOO
@pytest.mark.parametrize("drawn", [(1, 1, 1), (1, 300, 3), (129, 257, 13), (257, 129, 40)])
@DTYPES
def test_ragged_shapes_match_the_reference(fused, dtype, drawn):
    likelihood.check(Matrices(*drawn, dtype, 1.0, True, 7), masked="some")


@LOADS_TOO
def test_ids_do_not_mask_the_pairs_of_info_nce(fused):
    """Scores so large that a pair's own is most of its row: a target put back with another score shows."""
    drawn = Matrices(700, 700, 64, torch.bfloat16, 1.0, False, 5)
    contrastive.check(drawn, temperature=1.0, ids=True, workspace_bytes=0)
    assert fused == {"reduce": 1, "score_grad": 2, "target_scores": 1}


@pytest.mark.parametrize("columns", [515, 528])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_a_score_gradient_leaves_zeros_between_its_rows(fused, columns, softcap):
    """Some products read them, and multiply them by zero."""
    rows, pitch = 520, -(-columns // 16) * 16
    query, key = torch.randn(rows, 64).bfloat16(), torch.randn(columns, 64).bfloat16()
    terms = ScoreGradTerms(row_sum_grad=torch.ones(rows))
    out = torch.full((rows, pitch), torch.nan).bfloat16()
    score_map = ScoreMap(torch.tensor(2.0), softcap)
    TritonFused().score_grad(query, key, score_map, None, None, terms, out[:, :columns], None)
    assert (out[:, :columns] > 0).all() if softcap else (out[:, :columns] == 2).all()
    assert (out[:, columns:] == 0).all()


@DTYPES
@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_of_a_scale_takes_no_row_sums(fused, monkeypatch, dtype, frozen):
    """Unless the query is frozen, whose gradient it follows from."""
    row_sums, before = [], TritonFused.score_grad

    def watched(*args):  # type: ignore[no-untyped-def]
        row_sums.append(args[-1] is not None)
        before(*args)

    monkeypatch.setattr(TritonFused, "score_grad", watched)
    draw = torch.Generator().manual_seed(0)
    query, key = ((0.3 * torch.randn(700, 64, generator=draw)).to(dtype) for _ in range(2))
    grads = []
    for loss, leaf in ((info_nce, torch.float32), (reference.info_nce, torch.float64)):
        scale = torch.tensor(0.5, dtype=leaf, requires_grad=True)
        operands = [x if loss is info_nce else x.double() for x in (query, key)]
        operands[0].requires_grad_(not frozen)
        options = {"workspace_bytes": 0} if loss is info_nce else {}
        grads.append(torch.autograd.grad(loss(*operands, logit_scale=scale, **options), scale)[0].double())
        query.requires_grad_(False)
    assert abs(grads[0] / grads[1] - 1) < (1e-5 if dtype == torch.float32 else 1e-3)
    assert row_sums == [frozen] * 2


@pytest.mark.parametrize("ids", [False, True])
def test_sigmoid_loss_matches_the_reference(fused, ids):
    check = contrastive.test_sigmoid_loss_matches_the_reference.hypothesis.inner_test
    drawn = Matrices(300, 300, 24, torch.bfloat16, 0.3, False, 11)
    check("triton", drawn, scale=math.log(10), bias=-3.0, ids=ids, reduction="mean", workspace_bytes=0)


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28], ids=["recomputed", "saved"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_of_the_scale_is_exact_beside_a_large_bias(fused, frozen, workspace_bytes):
    """Its row sums leave out the part of the bias: with frozen queries those of the fused kernel."""
    query, key = (torch.nn.functional.normalize(torch.randn(300, 24)) for _ in range(2))
    grads = []
    for loss, leaf in ((sigmoid_loss, torch.float32), (reference.sigmoid_loss, torch.float64)):
        scale, bias = (torch.tensor(x, dtype=leaf, requires_grad=True) for x in (math.log(10), 40.0))
        operands = [x.to(leaf) for x in (query, key)]
        operands[0].requires_grad_(not frozen)
        options = {"workspace_bytes": workspace_bytes} if loss is sigmoid_loss else {}
        value = loss(*operands, logit_scale=scale, logit_bias=bias, **options)
        grads.append(float(torch.autograd.grad(value, scale)[0]))
    assert grads[0] == pytest.approx(grads[1], rel=2e-5)


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28], ids=["recomputed", "saved"])
def test_targets_alone_can_be_masked(fused, workspace_bytes):
    query, key = (torch.randn(600, 16).bfloat16().requires_grad_() for _ in range(2))
    targets = (torch.arange(600) + 100) % 600
    options = {"scale": 0.5, "targets": targets, "keep_target": False, "column_lse": True}
    got = sweep(query, key, workspace_bytes=workspace_bytes, **options)
    leaves = [x.detach().double().requires_grad_() for x in (query, key)]
    scores = leaves[0] @ leaves[1].T * 0.5
    off = scores.masked_fill(targets[:, None] == torch.arange(600), -torch.inf)
    want = off.logsumexp(1), off.logsumexp(0)
    size = float(scores.detach().abs().max())
    for mine, true in zip((got.row_lse, got.column_lse), want, strict=True):
        assert error(mine, true) < (1e-6 if workspace_bytes == 0 else 1e-2) * size
    upstream = torch.rand(2, 600)
    grads = torch.autograd.grad((got.row_lse * upstream[0] + got.column_lse * upstream[1]).sum(), (query, key))
    true_grads = torch.autograd.grad((want[0] * upstream[0] + want[1] * upstream[1]).sum(), leaves)
    for mine, true in zip(grads, true_grads, strict=True):
        assert error(mine, true) < 1e-2 * float(true.abs().max())


def test_all_sums_at_once_match_the_reference(fused):
    query, key = (torch.randn(300, 16).bfloat16() for _ in range(2))
    options = {"keep_target": False, "softplus": True, "clip": 2.0, "logit_sums": True, "entropy": True, "ranks": True}
    got = sweep(query, key, scale=0.7, targets=torch.arange(300), column_lse=True, **options)
    scores = (query.double() @ key.double().T) * 0.7
    off = scores.masked_fill(torch.eye(300, dtype=torch.bool), -torch.inf)
    clipped = scores.clamp(-2, 2).masked_fill(torch.eye(300, dtype=torch.bool), -torch.inf)
    size = float(scores.abs().max())
    assert error(got.row_lse, off.logsumexp(1)) < 1e-6 * size
    assert error(got.column_lse, off.logsumexp(0)) < 1e-6 * size
    assert error(got.clipped, clipped.logsumexp(1)) < 1e-6 * size
    assert error(got.target, scores.diagonal()) < 1e-6 * size
    finite = off.where(off > -torch.inf, 0)
    assert error(got.row_logits, finite.sum(1)) < 1e-6 * size * 300
    assert error(got.column_logits, finite.sum(0)) < 1e-6 * size * 300
    softplus = torch.logaddexp(off, off.new_zeros(()))
    assert error(got.softplus, softplus.sum(1)) < 1e-6 * float(softplus.sum(1).max())
    p = off.softmax(1)
    assert error(got.entropy, off.logsumexp(1) - (p * finite).sum(1)) < 4e-6 * size
    at_target = scores.diagonal()
    assert torch.equal(got.row_rank, (off > at_target[:, None]).sum(1).float())
    assert torch.equal(got.column_rank, (off > at_target).sum(0).float())


@DTYPES
def test_ranks_count_ties_like_the_reference(fused, dtype):
    """Equal scores tie: neither beats the other. Small whole numbers, so that products are exact in any order: the
    interpreter's come from the CPU's BLAS, where the bits of a row depend on its place."""
    half = torch.randint(-4, 5, (150, 20), dtype=torch.float32) / 4
    query, key = torch.cat([half, half]).to(dtype), torch.cat([half, half]).to(dtype) * 2
    got = pair_scores(query, key, temperature=0.5)
    want = reference.pair_scores(query, key, temperature=0.5)
    assert torch.equal(got.rank_query, want.rank_query)
    assert torch.equal(got.rank_key, want.rank_key)
    assert error(got.pmi, want.pmi) < 1e-5


@DTYPES
@pytest.mark.parametrize(("ids", "workspace_bytes"), [(False, 0), (True, 0), (True, 1 << 28)])
def test_a_column_far_below_its_tile_is_exact(fused, dtype, ids, workspace_bytes):
    """By 150 nats, where the shared exponential is 0; and by 50, where it is not."""
    query, key = torch.rand(700, 16) + 1, torch.rand(600, 16) + 1
    key[[5, 555]] *= -1
    key[[17, 590]] *= 0.1
    query, key = query.to(dtype), key.to(dtype)
    scores = query.double() @ key.double().T * 2
    masked = torch.arange(700)[:, None] // 2 == torch.arange(600) // 2 if ids else torch.zeros(700, 600, dtype=bool)
    options = {"row_ids": torch.arange(700) // 2, "column_ids": torch.arange(600) // 2} if ids else {}
    query.requires_grad_(workspace_bytes > 0)  # else no score is kept
    got = sweep(query, key, scale=2.0, column_lse=True, workspace_bytes=workspace_bytes, **options)
    want = scores.masked_fill(masked, -torch.inf)
    assert fused["reduce"] == (workspace_bytes == 0)
    allowed = ulps(float(scores.abs().max()))
    assert error(got.column_lse, want.logsumexp(0)) < allowed
    assert error(got.row_lse, want.logsumexp(1)) < allowed


def test_an_infinite_key_spoils_its_own_column_only(fused):
    query, key = torch.rand(140, 16).bfloat16(), torch.rand(300, 16).bfloat16()
    key[7, 3] = float("inf")
    got = sweep(query, key, column_lse=True)
    assert got.row_lse.isnan().all()
    assert got.column_lse.isnan().nonzero().tolist() == [[7]]


def test_kept_scores_tie_with_their_equals(fused, monkeypatch):
    """In one chunk, as on a CUDA device: a column's target score is the very score that the row has."""
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1 << 25)
    half = torch.randn(150, 24).bfloat16()
    query, key = (torch.cat([half, half]).requires_grad_() for _ in range(2))
    got = sweep(
        query,
        key,
        targets=torch.arange(300),
        column_lse=True,
        ranks=True,
        softcap=20.0,
        workspace_bytes=1 << 28,
    )
    assert not any(fused.values())
    scores = 20 * torch.tanh(query.detach().double() @ key.detach().double().T / 20)
    clearly = (scores > scores.diagonal() + 1e-3).sum(0)
    assert torch.equal(got.column_rank, clearly.float())


def test_passes_that_bound_the_partial_sums_agree_with_one(fused, monkeypatch):
    query, key = torch.randn(1300, 24).bfloat16(), torch.randn(300, 24).bfloat16()
    ids = {"row_ids": torch.arange(1300) // 2, "column_ids": torch.arange(300) // 2}
    options = {"targets": torch.arange(1300) % 300, "column_lse": True, "logit_sums": True, **ids}
    whole = sweep(query, key, **options)
    monkeypatch.setattr(configs, "PARTIAL_SUMS_BYTES", 1)
    passes = sweep(query, key, **options)
    assert fused["reduce"] == 2
    for name in ("row_lse", "target", "row_logits"):
        assert torch.equal(getattr(whole, name), getattr(passes, name)), name
    for name in ("column_lse", "column_logits"):
        assert error(getattr(passes, name), getattr(whole, name)) < 1e-4, name


@DTYPES
@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28])
def test_extreme_scores_match_the_reference(fused, dtype, workspace_bytes):
    """Logits of +-1e4: the log-sum-exps are as good as float32 can say, and so are the gradients."""
    query, key = (torch.randn(300, 8).to(dtype).requires_grad_() for _ in range(2))
    drawn = Matrices(300, 300, 8, dtype, 2.5, False, 3)
    contrastive.check(drawn, temperature=0.005, workspace_bytes=workspace_bytes)
    out = sweep(query, key, scale=1000.0, targets=torch.arange(300), column_lse=True, workspace_bytes=workspace_bytes)
    assert float(out.row_lse.detach().abs().max()) > 3000
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.row_lse.sum() + out.column_lse.sum(), (query, key)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_non_finite_operands_give_nan(fused, bad, softcap):
    query, key = torch.rand(140, 16).bfloat16(), torch.rand(300, 16).bfloat16()
    query[7, 3] = bad
    got = sweep(query, key, targets=torch.arange(140), column_lse=True, logit_sums=True, softplus=True, clip=1.0)
    if softcap is None:
        for name in ("row_lse", "target", "row_logits", "softplus", "clipped"):
            wrong = getattr(got, name).isnan()
            assert wrong.nonzero().tolist() == [[7]], name
        assert got.column_lse.isnan().all()
        assert got.column_logits.isnan().all()
    if not math.isinf(bad):
        got = sweep(query, key, softcap=softcap, targets=torch.arange(140))
        assert got.row_lse.isnan().sum() == 1


def test_a_second_backward_sees_the_same_scores(fused):
    """Kept scores are used up by the first; the second makes them again by the same products."""
    query, key = ((torch.randn(700, 64) * 3).bfloat16().requires_grad_() for _ in range(2))
    loss = info_nce(query, key, temperature=0.1, workspace_bytes=1 << 28)
    first = torch.autograd.grad(loss, (query, key), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, (query, key)), strict=True))
    assert not any(fused.values())


def test_the_backend_serves_supported_tensors_only(backend):
    """float32 products are exact only off the tensor cores, where cuBLAS is better than Triton."""
    served = [dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if TritonBackend.fused.supports(dtype)]
    assert served == [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("width", [16, 1001])
def test_operands_are_padded_only_if_misaligned(width):
    operand = torch.randn(5, width).bfloat16()
    padded = matmul_tile.aligned(operand)
    assert (padded is operand) == (width == 16)
    assert padded.shape[1] % 16 == padded.data_ptr() % 16 == 0
    assert torch.equal(padded, torch.nn.functional.pad(operand, (0, padded.shape[1] - width)))


@pytest.mark.parametrize("rows", [1, 4096, 8193, 32768, 100000])
@pytest.mark.parametrize("columns", [1000, 32768, 128256])
def test_chunks_on_a_device_are_neither_thin_nor_uneven(rows, columns):
    step = plan.make_plan(rows, columns, 4096, torch.bfloat16, "cuda").rows
    assert step % 128 == 0
    assert min(rows, 4096) <= step <= 8192
    chunks = -(-rows // step)
    assert rows > (chunks - 1) * step  # the last one is not empty,
    assert chunks * step - rows < 128 * chunks  # and as large as the others but for rounding


def test_products_add_to_existing_sums(monkeypatch):
    """The gradients of a CUDA device: float32 sums of 16-bit products, and room for what leaves."""
    monkeypatch.setattr(products, "leaves_float32", lambda device: True)
    mm, addmm = torch.mm, torch.addmm
    wide = {"dtype": torch.float32}
    monkeypatch.setattr(torch, "mm", lambda a, b, *, out_dtype, out: mm(a.to(**wide), b.to(**wide), out=out))
    monkeypatch.setattr(
        torch, "addmm", lambda c, a, b, *, out_dtype, out: addmm(c, a.to(**wide), b.to(**wide), out=out)
    )
    left, right = torch.randn(3, 40, 30).bfloat16(), torch.randn(3, 30, 20).bfloat16()
    buffer = grad_buffer.GradBuffer.empty(torch.empty(40, 20, dtype=torch.bfloat16))
    assert buffer.high.dtype == torch.float32
    assert not buffer.is_split
    for i in range(3):
        buffer.add_product(TritonBackend(), left[i], right[i], first=i == 0)
    total = (left.double() @ right.double()).sum(0)
    assert error(buffer.high, total) < 1e-5
    roomy = buffer.with_output(torch.bfloat16)
    roomy.finalize_(TritonBackend(), torch.tensor([0.3]))
    assert torch.equal(roomy.result(torch.bfloat16), (buffer.high * 0.3).bfloat16())
