"""Every wrong argument is a ValueError that names it, before anything runs."""

from __future__ import annotations

import pytest
import torch

from main_kernels import (
    info_nce,
    linear_cross_entropy,
    pair_scores,
    row_logsumexp,
    segment_pool,
    sequence_logprobs,
    sigmoid_loss,
    token_logprobs,
)
from main_kernels.backends import get_backend

from .contract import DEVICE

OF_VALUES = ("targets: row", "segment_ids: row", "cu_seqlens: segment", "cu_seqlens: got offsets")

with torch.device(DEVICE):
    HIDDEN, WEIGHT, TARGETS = torch.randn(4, 3), torch.randn(7, 3), torch.arange(4)
    PAIRS = torch.randn(5, 3), torch.randn(5, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: token_logprobs(HIDDEN[0], WEIGHT, TARGETS), r"hidden: got shape \(3,\)"),
        (lambda: token_logprobs(HIDDEN.long(), WEIGHT, TARGETS), "hidden: got dtype torch.int64"),
        (lambda: token_logprobs(HIDDEN, WEIGHT[:, :2], TARGETS), "weight: got 2 columns, want 3"),
        (lambda: token_logprobs(HIDDEN, WEIGHT.half(), TARGETS), "weight: got dtype torch.float16"),
        (lambda: token_logprobs(HIDDEN, WEIGHT.to("meta"), TARGETS), "weight: got device meta"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS[:2]), r"targets: got shape \(2,\), want \(4,\)"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS.float()), "targets: got dtype torch.float32"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS + 5), "targets: row 2 has 7"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS - 3), "targets: row 0 has -3"),
        (
            lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS - 1),
            "targets: row 0 has -1, want .* or -100, which is ignored",
        ),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS - 1, ignore_index=None), "targets: row 0 has -1"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS - 1, return_stats=True), "targets: row 0 has -1"),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS - 1), "targets: row 0 has -1"),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS - 100, ignore_index=-99), "targets: row 0 has -100"),
        (
            lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS - 1, token_weights=TARGETS * 1.0),
            "targets: row 0 has -1",
        ),
        (lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS - 1, torch.tensor([2, 4])), "targets: row 0 has -1"),
        (lambda: pair_scores(*PAIRS, targets=torch.arange(5) - 1), "targets: row 0 has -1"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, temperature=0), "temperature: got 0"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, temperature=float("nan")), "temperature: got nan"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, softcap=-1.0), "softcap: got -1.0"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, bias=torch.ones(3)), r"bias: got shape \(3,\)"),
        (lambda: token_logprobs(HIDDEN, WEIGHT[:0], TARGETS), "weight: .*at least one row"),
        (lambda: token_logprobs(HIDDEN[:, :0], WEIGHT[:, :0], TARGETS), "hidden: .*at least one column"),
        (lambda: info_nce(PAIRS[0], PAIRS[1][:4]), "key: got 4 rows, want 5"),
        (lambda: info_nce(*PAIRS, temperature=-1), "temperature: got -1"),
        (lambda: info_nce(*PAIRS, direction="x"), "direction: got 'x'"),
        (lambda: info_nce(*PAIRS, reduction="max"), "reduction: got 'max'"),
        (lambda: info_nce(*PAIRS, logit_scale=torch.ones(1)), r"logit_scale: got \(1,\)"),
        (lambda: info_nce(*PAIRS, logit_scale=2.0), "logit_scale: got float"),
        (lambda: info_nce(*PAIRS, pair_weights=torch.ones(4)), r"pair_weights: got shape \(4,\), want \(5,\)"),
        (lambda: info_nce(*PAIRS, label_smoothing=1.0), "label_smoothing: got 1.0"),
        (lambda: info_nce(*PAIRS, pair_ids=torch.ones(5)), "pair_ids: got dtype torch.float32, want int64"),
        (lambda: info_nce(*PAIRS, negatives=torch.randn(5, 2)), "negatives: got 2 columns, want 3"),
        (lambda: info_nce(*PAIRS, negatives=torch.randn(4, 2, 3)), r"negatives: got shape \(4, 2, 3\)"),
        (lambda: info_nce(*PAIRS, negatives=torch.randn(5, 2, 3).half()), "negatives: got dtype torch.float16"),
        (lambda: info_nce(*PAIRS, negatives=PAIRS[0], direction="key"), "negatives: got some, want none"),
        (lambda: sigmoid_loss(*PAIRS, logit_scale=torch.ones(()), logit_bias=-10.0), "logit_bias: got float"),
        (lambda: sigmoid_loss(*PAIRS, logit_scale=torch.ones(2), logit_bias=torch.ones(())), "logit_scale: got"),
        (lambda: pair_scores(*PAIRS, temperature=0), "temperature: got 0"),
        (lambda: pair_scores(PAIRS[0], WEIGHT), "key: got 7 rows, want 5"),
        (lambda: pair_scores(PAIRS[0], WEIGHT, targets=torch.arange(5) + 3), "targets: row 4 has 7, want 0 to 6"),
        (lambda: pair_scores(PAIRS[0], WEIGHT, targets=torch.arange(5) // 2), "targets: rows 0 and 1 both have 0"),
        (lambda: pair_scores(PAIRS[0], WEIGHT, targets=TARGETS), r"targets: got shape \(4,\), want \(5,\)"),
        (lambda: pair_scores(*PAIRS, targets=torch.arange(5), pair_ids=torch.arange(5)), "key_ids: got none"),
        (
            lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, token_weights=torch.ones(3)),
            r"token_weights: got shape \(3,\)",
        ),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, label_smoothing=-0.1), "label_smoothing: got -0.1"),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, z_loss=-1.0), "z_loss: got -1.0"),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, reduction="avg"), "reduction: got 'avg'"),
        (lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS), "cu_seqlens: got neither"),
        (lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, TARGETS, TARGETS), "cu_seqlens: got both"),
        (lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, torch.tensor([0, 3, 2])), "cu_seqlens: segment 1 has"),
        (lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, torch.tensor([0, 9])), "cu_seqlens: got offsets 0 to 9"),
        (
            lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, segment_ids=TARGETS, segments=3),
            "segment_ids: row 3 has 3, want -1 to 2",
        ),
        (lambda: row_logsumexp(PAIRS[0], WEIGHT[:, :1]), "key: got 1 columns"),
        (lambda: segment_pool(HIDDEN, TARGETS.float()), "cu_seqlens: got torch.float32"),
        (lambda: segment_pool(HIDDEN, TARGETS[:0]), "cu_seqlens: got shape"),
        (lambda: segment_pool(HIDDEN, TARGETS, mode="max"), "mode: got 'max'"),
        (lambda: segment_pool([1], TARGETS), "hidden: got list"),
        (lambda: info_nce(PAIRS[0], PAIRS[1].to_sparse()), r"key: got layout torch.sparse_coo, .*key\.to_dense\(\)"),
        (lambda: get_backend("tpu"), "backend: got 'tpu'"),
    ],
)
def test_is_refused(call, words):
    if DEVICE != "cpu" and words.startswith(OF_VALUES):
        pytest.skip("on a device it is an assertion there, after which nothing runs")
    with pytest.raises(ValueError, match=words):
        call()
