"""Every wrong argument is a ValueError that names it, before anything runs."""

from __future__ import annotations

import pytest
import torch

from main_kernels import info_nce, pair_scores, row_logsumexp, segment_pool, token_logprobs
from main_kernels.backends import get

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
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, temperature=0), "temperature: got 0"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, temperature=float("nan")), "temperature: got nan"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, softcap=-1.0), "softcap: got -1.0"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, bias=torch.ones(3)), r"bias: got shape \(3,\)"),
        (lambda: token_logprobs(HIDDEN[:0], WEIGHT, TARGETS[:0]), "hidden: .*at least one row"),
        (lambda: info_nce(PAIRS[0], PAIRS[1][:4]), "key: got 4 rows, want 5"),
        (lambda: info_nce(*PAIRS, temperature=-1), "temperature: got -1"),
        (lambda: info_nce(*PAIRS, direction="x"), "direction: got 'x'"),
        (lambda: info_nce(*PAIRS, reduction="max"), "reduction: got 'max'"),
        (lambda: info_nce(*PAIRS, logit_scale=torch.ones(1)), r"logit_scale: got \(1,\)"),
        (lambda: info_nce(*PAIRS, logit_scale=2.0), "logit_scale: got float"),
        (lambda: pair_scores(*PAIRS, temperature=0), "temperature: got 0"),
        (lambda: row_logsumexp(PAIRS[0], WEIGHT[:, :1]), "key: got 1 columns"),
        (lambda: segment_pool(HIDDEN, TARGETS.float()), "cu_seqlens: got torch.float32"),
        (lambda: segment_pool(HIDDEN, TARGETS[:1]), "cu_seqlens: got shape"),
        (lambda: segment_pool(HIDDEN, TARGETS, mode="max"), "mode: got 'max'"),
        (lambda: segment_pool([1], TARGETS), "hidden: got list"),
        (lambda: get("tpu"), "backend: got 'tpu'"),
    ],
)
def test_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
