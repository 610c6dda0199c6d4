"""linear_cross_entropy and sequence_logprobs against the float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from main_kernels import (
    info_nce,
    linear_cross_entropy,
    mutual_information,
    mutual_information_bounds,
    pair_scores,
    reference,
    sequence_logprobs,
    token_logprobs,
)
from main_kernels.sweep import CrossEntropy, plan, sweep

from .contract import DEVICE, Matrices, assert_contract, error, exact, largest_logit, matrices, seeded
from .test_contrastive import check_gradients, served


def draw_targets(drawn: Matrices, masked: str) -> torch.Tensor:
    generator = seeded(drawn.seed + 1)
    targets = torch.randint(0, drawn.columns, (drawn.rows,), generator=generator)
    if masked == "some":
        targets[torch.rand(drawn.rows, generator=generator) < 0.3] = -100
    elif masked == "all":
        targets[:] = -100
    return targets


def check(drawn: Matrices, *, weights=None, masked="some", biased=False, **options):
    hidden, weight = drawn.draw()
    generator = seeded(drawn.seed + 2)
    leaves = {"hidden": hidden, "weight": weight}
    if biased:
        leaves["bias"] = torch.randn(drawn.columns, generator=generator).requires_grad_()
    if weights is not None:
        drawn_weights = torch.rand(drawn.rows, generator=generator)
        drawn_weights[torch.rand(drawn.rows, generator=generator) < 0.2] = 0
        if weights == "learnt":
            leaves["token_weights"] = drawn_weights.requires_grad_()
        else:
            options["token_weights"] = drawn_weights
    options["targets"] = draw_targets(drawn, masked)
    got = linear_cross_entropy(**leaves, **options)
    true_leaves = dict(zip(leaves, exact(*leaves.values()), strict=True))
    want = reference.linear_cross_entropy(**true_leaves, **options)
    rough = reference.linear_cross_entropy(**leaves, **options, product=reference.rough)
    map_options = {name: options[name] for name in ("softcap",) if name in options}
    z = reference.logits(hidden, weight, bias=leaves.get("bias"), **map_options)
    logit = largest_logit(z)
    largest = logit + options.get("z_loss", 0.0) * logit**2
    summed = drawn.rows if options.get("reduction") == "sum" else 1
    assert_contract("loss", got, rough, want, largest * summed)
    factor = 1 + 2 * options.get("z_loss", 0.0) * logit
    counted = (options["targets"] >= 0).float() * options.get(
        "token_weights", leaves.get("token_weights", torch.ones(drawn.rows))
    )
    total = float(counted.detach().sum()) or 1.0
    mean_factor = 1 / total if options.get("reduction", "mean") == "mean" else 1
    bounds = {
        "hidden": mean_factor * factor * float(weight.detach().abs().max()),
        "weight": mean_factor * factor * float(hidden.detach().abs().max()),
        "bias": mean_factor * factor,
        "token_weights": mean_factor * 2 * largest,
    }
    pairs = [list(leaves.values()), list(true_leaves.values())]
    check_gradients(drawn, leaves, got, rough, want, pairs, [bounds[name] for name in leaves])


@given(
    drawn=matrices(),
    weights=st.sampled_from([None, "given", "learnt"]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    z_loss=st.sampled_from([0.0, 1e-4, 0.1]),
    softcap=st.sampled_from([None, 5.0]),
    biased=st.booleans(),
    masked=st.sampled_from(["none", "some", "all"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_linear_cross_entropy_matches_the_reference(backend, drawn, **options):
    check(served(backend, drawn), **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_chunks_match_the_reference(backend, dtype, reduction, monkeypatch, fast_bfloat16):
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    drawn = Matrices(540, 1060, 48, dtype, 0.6, False, 5)
    assert plan.make_plan(540, 1060, 48, dtype).rows == 512
    assert (plan.make_plan(540, 1060, 48, dtype).compute == dtype) == (fast_bfloat16 or dtype == torch.float32)
    check(drawn, weights="given", label_smoothing=0.1, z_loss=1e-3, reduction=reduction)


def test_linear_cross_entropy_matches_torch(backend):
    hidden, weight, targets = torch.randn(30, 8), torch.randn(50, 8), torch.randint(0, 50, (30,))
    targets[::4] = -100
    want = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, label_smoothing=0.2)
    assert linear_cross_entropy(hidden, weight, targets, label_smoothing=0.2).item() == pytest.approx(want.item(), 1e-6)
    assert token_logprobs(hidden, weight, targets).sum().item() == pytest.approx(
        -linear_cross_entropy(hidden, weight, targets, reduction="sum").item(), rel=1e-6
    )


def test_zero_weights_mask_nan(backend):
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4, requires_grad=True)
    hidden[2] = float("nan")
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    loss = linear_cross_entropy(hidden, weight, torch.arange(6), token_weights=weights)
    assert loss.isfinite()
    loss.backward()
    assert weight.grad.isfinite().all()
    assert linear_cross_entropy(hidden, weight, torch.arange(6)).isnan()


@pytest.mark.parametrize("weights", [None, torch.zeros(3, device=DEVICE)])
def test_no_scored_token_gives_zero_in_the_graph(backend, weights):
    hidden, head = (torch.randn(n, 4, requires_grad=True) for n in (3, 9))
    targets = torch.full((3,), -100) if weights is None else torch.arange(3)
    loss = linear_cross_entropy(hidden, head, targets, token_weights=weights, z_loss=0.1, label_smoothing=0.1)
    assert loss.item() == 0
    loss.backward()
    assert not hidden.grad.any()
    assert not head.grad.any()


@given(
    drawn=matrices(),
    masked=st.sampled_from(["none", "some", "all"]),
    packed=st.booleans(),
    softcap=st.sampled_from([None, 5.0]),
    workspace_bytes=st.sampled_from([0, 1 << 20]),
)
def test_sequence_logprobs_match_the_reference(backend, drawn, masked, packed, softcap, workspace_bytes):
    drawn = served(backend, drawn)
    hidden, weight = drawn.draw()
    targets = draw_targets(drawn, masked)
    generator = seeded(drawn.seed)
    if packed:
        cuts = torch.randint(0, drawn.rows + 1, (5,), generator=generator).sort().values
        segments = {"cu_seqlens": cuts.to(torch.int32 if drawn.seed % 2 else torch.int64)}
    else:
        ids = torch.randint(-1, 4, (drawn.rows,), generator=generator)
        ids[0] = 3
        segments = {"segment_ids": ids}
    options = {"softcap": softcap, "temperature": 0.7}
    got = sequence_logprobs(hidden, weight, targets, **segments, **options, workspace_bytes=workspace_bytes)
    leaves = exact(hidden, weight)
    want = reference.sequence_logprobs(*leaves, targets, **segments, **options)
    rough = reference.sequence_logprobs(hidden, weight, targets, **segments, **options, product=reference.rough)
    logit = largest_logit(reference.logits(hidden, weight, **options))
    assert_contract("logprobs", got, rough, want, logit * drawn.rows)
    bounds = [float(other.detach().abs().max()) / 0.7 for other in (weight, hidden)]
    check_gradients(drawn, ("hidden", "weight"), got, rough, want, [(hidden, weight), leaves], bounds)


def test_segment_ids_and_offsets_give_the_same_sums(backend):
    hidden, weight, targets = torch.randn(20, 4), torch.randn(30, 4), torch.arange(20)
    packed = sequence_logprobs(hidden, weight, targets, torch.tensor([2, 5, 5, 17]))
    ids = torch.tensor([-1, -1, *[0] * 3, *[2] * 12, *[-1] * 3])
    assert torch.equal(packed, sequence_logprobs(hidden, weight, targets, segment_ids=ids))
    mixed = torch.randperm(20)
    shuffled = sequence_logprobs(hidden[mixed], weight, targets[mixed], segment_ids=ids[mixed], segments=4)
    assert error(packed, shuffled[:3]) < 1e-5
    assert shuffled[3] == 0
    assert packed[1] == 0


def test_gradients_are_exact_for_every_subset_of_arguments(backend):
    """Gradients with other factors than those that were foreseen are made anew."""
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (20, 40))
    targets = torch.arange(20)
    for factors in (torch.ones(20) * 3, torch.rand(20), torch.eye(20)[3]):
        each = linear_cross_entropy(hidden, weight, targets, label_smoothing=0.1, z_loss=0.01, reduction="none")
        leaves = exact(hidden, weight)
        want = reference.linear_cross_entropy(*leaves, targets, label_smoothing=0.1, z_loss=0.01, reduction="none")
        mine = torch.autograd.grad(each, (hidden, weight), factors)
        true = torch.autograd.grad(want, leaves, factors.double())
        for got, wanted in zip(mine, true, strict=True):
            assert error(got, wanted) < 1e-5


def test_any_index_may_be_the_ignored_one(backend):
    hidden, weight, targets = torch.randn(6, 4), torch.randn(9, 4), torch.tensor([3, 0, 8, 0, 1, 2])
    for index in (0, -1, 99):
        marked = targets.where(targets > 0, index)
        want = reference.linear_cross_entropy(hidden, weight, marked, ignore_index=index)
        assert error(linear_cross_entropy(hidden, weight, marked, ignore_index=index), want) < 1e-6
        got = token_logprobs(hidden, weight, marked, ignore_index=index, return_stats=True)
        assert error(got.logprobs, reference.token_logprobs(hidden, weight, marked, ignore_index=index).logprobs) < 1e-6


def test_long_sequences_lose_no_digits(backend):
    """The tokens of a segment are added in float64: the error of the sum is that of its tokens."""
    hidden, weight = torch.randn(40_000, 1), torch.randn(3, 1)
    targets = torch.randint(0, 3, (40_000,))
    leaves = exact(hidden, weight)
    got = sequence_logprobs(hidden, weight, targets, torch.tensor([0, 5000, 40_000]))
    each = reference.token_logprobs(*leaves, targets).logprobs
    want = torch.stack([each[:5000].sum(), each[5000:].sum()])
    assert got.dtype == torch.float32
    assert error(got, want) < 4e-3  # an ulp of 40,000 nats


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_common_offset_costs_no_digits(backend, dtype):
    """Logits of 1e4 and more whose products are exact: losses, gradients and entropy are as without the offset."""
    spread = torch.randint(-8, 8, (50, 2)) / 4
    hidden = torch.cat([torch.ones(20, 1), torch.randint(-3, 4, (20, 2))], 1).to(dtype).requires_grad_()
    targets, offset = torch.arange(20), 16384.0
    rows = []
    for first in (0.0, offset):
        weight = torch.cat([torch.full((50, 1), first), spread], 1).to(dtype).requires_grad_()
        pair = hidden, weight[:20]
        outs = [
            linear_cross_entropy(hidden, weight, targets, label_smoothing=0.1, reduction="none"),
            token_logprobs(hidden, weight, targets),
            *token_logprobs(hidden, weight, targets, return_stats=True)[:2],
            sequence_logprobs(hidden, weight, targets, torch.tensor([0, 1, 2, 20])),
            info_nce(*pair, temperature=1.0, reduction="none", label_smoothing=0.1),
            info_nce(*pair, temperature=1.0, reduction="none", negatives=weight[None, 20:].expand(20, -1, -1)),
            *pair_scores(*pair, temperature=1.0)[:3],
            mutual_information(*pair, estimator="infonce"),
            mutual_information(*pair, estimator="dv"),
            mutual_information_bounds(*pair)["infonce"],
            mutual_information_bounds(*pair)["dv"],
        ]
        total = sum((out * torch.arange(1.0, out.numel() + 1)).sum() for out in outs)
        rows.append([*outs, torch.autograd.grad(total, weight)[0]])
    for plain, far in zip(*rows, strict=True):
        assert error(plain, far) <= 3e-6 * max(1.0, float(plain.detach().abs().max()))


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 20])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_fused_loss_does_not_change_the_other_outputs(backend, workspace_bytes, ignored):
    """The sweep's own loss and whatever else is differentiated with it; weights that are trained."""
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (20, 40))
    weights = torch.rand(20, requires_grad=True)
    targets = torch.arange(20)
    if ignored:
        targets[::3] = -1
    row_loss = CrossEntropy(weights, label_smoothing=0.1, z_loss=0.02)
    got = sweep(hidden, weight, targets=targets, ignore_index=-1, loss=row_loss, workspace_bytes=workspace_bytes)
    leaves = exact(hidden, weight, weights)
    options = {"ignore_index": -1, "reduction": "none", "label_smoothing": 0.1, "z_loss": 0.02}
    want = reference.linear_cross_entropy(*leaves[:2], targets, token_weights=leaves[2], **options)
    assert error(got.loss, want) < 1e-5
    lse = torch.where(targets < 0, 0, torch.logsumexp(leaves[0] @ leaves[1].T, 1))
    for mine, true in (
        (got.loss.sum(), want.sum()),
        (got.loss.sum() + got.row_lse.square().sum(), want.sum() + lse.square().sum()),
        ((got.loss * targets).sum(), (want * targets).sum()),
    ):
        pairs = zip(
            torch.autograd.grad(mine, (hidden, weight, weights), retain_graph=True),
            torch.autograd.grad(true, leaves, retain_graph=True),
            strict=True,
        )
        assert all(error(a, b) < 1e-4 for a, b in pairs)


def test_valid_targets_give_the_same_without_an_ignore_index(backend):
    """ignore_index=None: the same numbers, and -100 is no target like another."""
    hidden, weight, targets = torch.randn(20, 8), torch.randn(40, 8), torch.arange(20)
    weights = torch.arange(20.0)
    for call in (
        lambda **o: token_logprobs(hidden, weight, targets, **o),
        lambda **o: token_logprobs(hidden, weight, targets, return_stats=True, **o).is_argmax,
        lambda **o: linear_cross_entropy(hidden, weight, targets, **o),
        lambda **o: linear_cross_entropy(hidden, weight, targets, token_weights=weights, reduction="none", **o),
        lambda **o: sequence_logprobs(hidden, weight, targets, torch.tensor([0, 7, 20]), **o),
    ):
        assert error(call(ignore_index=None), call()) < 1e-6
    if DEVICE != "cpu":
        pytest.skip("out of range is an assertion on the device")
    with pytest.raises(ValueError, match=r"targets: expected .*, got -100 in row 3"):
        linear_cross_entropy(hidden, weight, targets.where(targets != 3, -100), ignore_index=None)


def test_z_loss_matches_a_hand_calculation(backend):
    hidden, weight = torch.zeros(1, 2), torch.zeros(8, 2)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([3]), z_loss=0.5)
    assert loss.item() == pytest.approx(math.log(8) + 0.5 * math.log(8) ** 2, rel=1e-6)
