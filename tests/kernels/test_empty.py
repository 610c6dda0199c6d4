"""Nothing left, as from hidden[mask] on one rank of several: a connected zero or an empty vector, as torch gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import main_kernels
from main_kernels import (
    cyclic_consistency,
    info_nce,
    linear_cross_entropy,
    linear_kl,
    mutual_information,
    mutual_information_bounds,
    pair_scores,
    reference,
    relational_scores,
    row_logsumexp,
    segment_pool,
    sequence_logprobs,
    sigmoid_loss,
    token_logprobs,
)

from .calls import ids, number, values_and_gradients
from .contract import DEVICE

OFFSETS, NO_SEGMENT = torch.tensor([0, 0, 0], device=DEVICE), torch.tensor([0], device=DEVICE)

# name -> (call on query[0, D], key[0, D] and head[V, D], shape of the first output)
EMPTY_CALLS = {
    **{
        f"{name}_{reduction}": (call, (0,) if reduction == "none" else ())
        for reduction in ("mean", "sum", "none")
        for name, call in {
            "linear_cross_entropy": lambda q, k, w, r=reduction: linear_cross_entropy(q, w, ids(q), reduction=r),
            "linear_cross_entropy_no_index": lambda q, k, w, r=reduction: linear_cross_entropy(
                q, w, ids(q), ignore_index=None, token_weights=q.sum(1), label_smoothing=0.1, reduction=r
            ),
            "linear_kl": lambda q, k, w, r=reduction: linear_kl(q, w, k, w, reduction=r),
            "linear_kl_masked": lambda q, k, w, r=reduction: linear_kl(q, w, k, w, token_mask=ids(q) > 0, reduction=r),
            "info_nce": lambda q, k, w, r=reduction: info_nce(q, k, reduction=r),
            "info_nce_recomputed": lambda q, k, w, r=reduction: info_nce(
                q, k, pair_ids=ids(q), label_smoothing=0.1, negatives=w, workspace_bytes=0, reduction=r
            ),
            "info_nce_query": lambda q, k, w, r=reduction: info_nce(
                q, k, direction="query", pair_weights=q.sum(1), logit_scale=number(1, q), reduction=r
            ),
            "sigmoid_loss": lambda q, k, w, r=reduction: sigmoid_loss(
                q, k, logit_scale=number(1, q), logit_bias=number(-1, q), pair_ids=ids(q), reduction=r
            ),
        }.items()
    },
    "token_logprobs": (lambda q, k, w: token_logprobs(q, w, ids(q)), (0,)),
    "token_logprobs_stats": (lambda q, k, w: token_logprobs(q, w, ids(q), return_stats=True), (0,)),
    "sequence_logprobs": (lambda q, k, w: sequence_logprobs(q, w, ids(q), OFFSETS), (2,)),
    "sequence_logprobs_none": (lambda q, k, w: sequence_logprobs(q, w, ids(q), NO_SEGMENT), (0,)),
    "sequence_logprobs_no_id": (lambda q, k, w: sequence_logprobs(q, w, ids(q), segment_ids=ids(q), segments=0), (0,)),
    "sequence_logprobs_ids": (lambda q, k, w: sequence_logprobs(q, w, ids(q), segment_ids=ids(q)), (1,)),
    "pair_scores": (lambda q, k, w: pair_scores(q, k, pair_ids=ids(q)), (0,)),
    "pair_scores_bank": (lambda q, k, w: pair_scores(q, w, targets=ids(q)), (0,)),
    "row_logsumexp": (lambda q, k, w: row_logsumexp(q, w), (0,)),
    "cyclic_consistency": (lambda q, k, w: cyclic_consistency(q, k, within=0.5), ()),
    "relational_scores": (lambda q, k, w: relational_scores(q, k), (0,)),
    "segment_pool": (lambda q, k, w: segment_pool(q, OFFSETS), (2, 4)),
    "segment_pool_none": (lambda q, k, w: segment_pool(q, NO_SEGMENT), (0, 4)),
    "segment_pool_last_none": (lambda q, k, w: segment_pool(q, NO_SEGMENT, mode="last"), (0, 4)),
    "segment_pool_attention_none": (lambda q, k, w: segment_pool(q, NO_SEGMENT, mode="attention", query=w[0]), (0, 4)),
    "segment_pool_last": (lambda q, k, w: segment_pool(q, OFFSETS, mode="last"), (2, 4)),
    "segment_pool_attention": (
        lambda q, k, w: segment_pool(q, OFFSETS, mode="attention", query=w[0], row_weights=q.sum(1)),
        (2, 4),
    ),
}


@pytest.mark.parametrize("name", EMPTY_CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fully_masked_input_gives_zero_in_the_graph(backend, name, dtype):
    call, shape = EMPTY_CALLS[name]
    query = torch.randn(6, 4).to(dtype).requires_grad_()
    head = torch.randn(5, 4).to(dtype).requires_grad_()
    none = torch.zeros(6, dtype=torch.bool)
    value, *others, d_query, d_head = values_and_gradients(lambda q, w: call(q[none], q[none], w), query, head)
    assert value.shape == shape
    assert not value.any()
    assert all(other.shape == value.shape for other in others)
    assert d_query.shape == query.shape
    assert not d_query.any()
    assert d_head is None or (d_head.shape == head.shape and not d_head.any())


def test_empty_input_gives_what_torch_gives():
    hidden, weight, targets = torch.randn(0, 4, requires_grad=True), torch.randn(5, 4), torch.zeros(0).long()
    for reduction in ("sum", "none"):
        want = F.cross_entropy(hidden @ weight.T, targets, reduction=reduction)
        assert torch.equal(linear_cross_entropy(hidden, weight, targets, reduction=reduction), want)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, q, w: m.segment_pool(q, NO_SEGMENT),
        lambda m, q, w: m.sequence_logprobs(q, w, ids(q), NO_SEGMENT),
        lambda m, q, w: m.cyclic_consistency(q, q),
    ],
)
def test_the_reference_accepts_an_empty_input(call):
    empty, weight = torch.zeros(0, 4, dtype=torch.float64), torch.ones(5, 4, dtype=torch.float64)
    assert torch.equal(call(reference, empty, weight), call(main_kernels, empty, weight))


def test_rows_outside_all_segments_get_no_gradient(backend):
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    for offset in (0, 2, 6):
        none = torch.tensor([offset])
        (segment_pool(hidden, none).sum() + sequence_logprobs(hidden, weight, ids(hidden), none).sum()).backward()
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize(
    "call",
    [
        lambda q: mutual_information(q, q),
        lambda q: mutual_information(q, q, estimator="nwj"),
        lambda q: mutual_information_bounds(q, q),
        lambda q: row_logsumexp(q, q),
        lambda q: token_logprobs(q, q, ids(q)),
        lambda q: linear_kl(q, q, q, q),
        lambda q: info_nce(q, q, negatives=q),
    ],
)
def test_an_undefined_result_is_refused(call):
    """A bound on nothing, a softmax over nothing."""
    with pytest.raises(ValueError, match=r"expected at least .*, got (0 rows|shape \(0, 4\))"):
        call(torch.zeros(0, 4))
