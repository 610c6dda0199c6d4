"""Every wrong argument is a ValueError, or a TypeError, that names it, before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from main_kernels import (
    cyclic_consistency,
    info_nce,
    linear_cross_entropy,
    linear_kl,
    mutual_information,
    pair_scores,
    row_logsumexp,
    segment_pool,
    sequence_logprobs,
    sigmoid_loss,
    token_logprobs,
)
from main_kernels.backends import get_backend

from .contract import DEVICE

OF_VALUES = (" in row", " in segment", "offsets within")

with torch.device(DEVICE):
    HIDDEN, WEIGHT, TARGETS = torch.randn(4, 3), torch.randn(7, 3), torch.arange(4)
    PAIRS = torch.randn(5, 3), torch.randn(5, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: token_logprobs(HIDDEN[0], WEIGHT, TARGETS), r"hidden: expected .*, got shape \(3,\)"),
        (lambda: token_logprobs(HIDDEN.long(), WEIGHT, TARGETS), "hidden: expected .*, got dtype torch.int64"),
        (lambda: token_logprobs(HIDDEN, WEIGHT[:, :2], TARGETS), "weight: expected 3 columns, got 2 columns"),
        (lambda: token_logprobs(HIDDEN, WEIGHT.half(), TARGETS), "weight: expected .*, got dtype torch.float16"),
        (lambda: token_logprobs(HIDDEN, WEIGHT.to("meta"), TARGETS), "weight: expected .*, got device meta"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS[:2]), r"targets: expected \(4,\), got shape \(2,\)"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS.float()), "targets: expected .*, got dtype torch.float32"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS + 5), "targets: expected .*, got 7 in row 2"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS - 3), "targets: expected .*, got -3 in row 0"),
        (
            lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS - 1),
            "targets: expected .* or -100, which is ignored, got -1 in row 0",
        ),
        (
            lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS - 1, ignore_index=None),
            "targets: expected .*, got -1 in row 0",
        ),
        (
            lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS - 1, return_stats=True),
            "targets: expected .*, got -1 in row 0",
        ),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS - 1), "targets: expected .*, got -1 in row 0"),
        (
            lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS - 100, ignore_index=-99),
            "targets: expected .*, got -100 in row 0",
        ),
        (
            lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS - 1, token_weights=TARGETS * 1.0),
            "targets: expected .*, got -1 in row 0",
        ),
        (
            lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS - 1, torch.tensor([2, 4])),
            "targets: expected .*, got -1 in row 0",
        ),
        (lambda: pair_scores(*PAIRS, targets=torch.arange(5) - 1), "targets: expected .*, got -1 in row 0"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, temperature=0), "temperature: expected .*, got 0"),
        (
            lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, temperature=float("nan")),
            "temperature: expected .*, got nan",
        ),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, softcap=-1.0), "softcap: expected .*, got -1.0"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, bias=torch.ones(3)), r"bias: expected .*, got shape \(3,\)"),
        (lambda: token_logprobs(HIDDEN, WEIGHT[:0], TARGETS), "weight: .*at least one row"),
        (lambda: token_logprobs(HIDDEN[:, :0], WEIGHT[:, :0], TARGETS), "hidden: .*at least one column"),
        (lambda: info_nce(PAIRS[0], PAIRS[1][:4]), "key: expected 5 rows, got 4 rows"),
        (lambda: info_nce(*PAIRS, temperature=-1), "temperature: expected .*, got -1"),
        (lambda: info_nce(*PAIRS, temperature=1e-320), "temperature: expected .*, got 1e-320"),
        (lambda: info_nce(*PAIRS, direction="x"), "direction: expected .*, got 'x'"),
        (lambda: info_nce(*PAIRS, reduction="max"), "reduction: expected .*, got 'max'"),
        (lambda: info_nce(*PAIRS, logit_scale=torch.ones(1)), r"logit_scale: expected .*, got \(1,\)"),
        (lambda: info_nce(*PAIRS, pair_weights=torch.ones(4)), r"pair_weights: expected \(5,\), got shape \(4,\)"),
        (lambda: info_nce(*PAIRS, label_smoothing=1.0), "label_smoothing: expected .*, got 1.0"),
        (lambda: info_nce(*PAIRS, pair_ids=torch.ones(5)), "pair_ids: expected int64, got dtype torch.float32"),
        (lambda: info_nce(*PAIRS, negatives=torch.randn(5, 2)), "negatives: expected 3 columns, got 2 columns"),
        (lambda: info_nce(*PAIRS, negatives=torch.randn(4, 2, 3)), r"negatives: expected .*, got shape \(4, 2, 3\)"),
        (
            lambda: info_nce(*PAIRS, negatives=torch.randn(5, 2, 3).half()),
            "negatives: expected .*, got dtype torch.float16",
        ),
        (lambda: info_nce(*PAIRS, negatives=PAIRS[0], direction="key"), "negatives: expected none .*, got some"),
        (
            lambda: sigmoid_loss(*PAIRS, logit_scale=torch.ones(2), logit_bias=torch.ones(())),
            "logit_scale: expected .*, got",
        ),
        (lambda: pair_scores(*PAIRS, temperature=0), "temperature: expected .*, got 0"),
        (lambda: pair_scores(PAIRS[0], WEIGHT), "key: expected 5 rows, got 7 rows"),
        (
            lambda: pair_scores(PAIRS[0], WEIGHT, targets=torch.arange(5) + 3),
            "targets: expected 0 to 6, got 7 in row 4",
        ),
        (
            lambda: pair_scores(PAIRS[0], WEIGHT, targets=torch.arange(5) // 2),
            "targets: expected .*, got 0 in rows 0 and 1",
        ),
        (lambda: pair_scores(PAIRS[0], WEIGHT, targets=TARGETS), r"targets: expected \(5,\), got shape \(4,\)"),
        (
            lambda: pair_scores(*PAIRS, targets=torch.arange(5), pair_ids=torch.arange(5)),
            "key_ids: expected .*, got none",
        ),
        (
            lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, token_weights=torch.ones(3)),
            r"token_weights: expected .*, got shape \(3,\)",
        ),
        (
            lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, label_smoothing=-0.1),
            "label_smoothing: expected .*, got -0.1",
        ),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, z_loss=-1.0), "z_loss: expected .*, got -1.0"),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, reduction="avg"), "reduction: expected .*, got 'avg'"),
        (lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS), "cu_seqlens: expected .*, got neither"),
        (lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, TARGETS, TARGETS), "cu_seqlens: expected .*, got both"),
        (
            lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, torch.tensor([0, 3, 2])),
            "cu_seqlens: expected .* in segment 1",
        ),
        (
            lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, torch.tensor([0, 9])),
            "cu_seqlens: expected offsets within 0 to 4, got 0 to 9",
        ),
        (
            lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, segment_ids=TARGETS, segments=3),
            "segment_ids: expected -1 to 2, got 3 in row 3",
        ),
        (lambda: row_logsumexp(PAIRS[0], WEIGHT[:, :1]), "key: expected .*, got 1 columns"),
        (lambda: segment_pool(HIDDEN, TARGETS.float()), "cu_seqlens: expected .*, got torch.float32"),
        (lambda: segment_pool(HIDDEN, TARGETS[:0]), "cu_seqlens: expected .*, got shape"),
        (lambda: segment_pool(HIDDEN, TARGETS, mode="max"), "mode: expected .*, got 'max'"),
        (
            lambda: info_nce(PAIRS[0], PAIRS[1].to_sparse()),
            r"key: expected .*, got layout torch.sparse_coo: .*key\.to_dense\(\)",
        ),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, softcap=1e-46), "softcap: expected .*, got 1e-46"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, softcap=1e39), "softcap: expected .*, got 1e[+]39"),
        (lambda: mutual_information(*PAIRS, estimator="smile", clip=1e39), "clip: expected .*, got 1e[+]39"),
        (
            lambda: linear_kl(HIDDEN, WEIGHT, HIDDEN, WEIGHT, divergence="js", beta=1e-46),
            "beta: expected .*, got 1e-46",
        ),
        (lambda: info_nce(*PAIRS, temperature=1e39), "temperature: expected .*, got 1e[+]39"),
        (lambda: info_nce(*PAIRS, temperature=torch.ones(()).to_sparse()), r"temperature: .*temperature\.to_dense\(\)"),
        (
            lambda: info_nce(*PAIRS, negatives=torch.ones(5, 2, 3).to_sparse()),
            r"negatives: expected .*negatives\.to_dense\(\)",
        ),
        (lambda: get_backend("tpu"), "backend: expected .*, got 'tpu'"),
    ],
)
def test_an_invalid_argument_is_refused(call, words):
    if DEVICE != "cpu" and any(part in words for part in OF_VALUES):
        pytest.skip("on a device it is an assertion there, after which nothing runs")
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("label_smoothing", lambda x: info_nce(*PAIRS, label_smoothing=x)),
        ("label_smoothing", lambda x: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, label_smoothing=x)),
        ("z_loss", lambda x: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, z_loss=x)),
        ("softcap", lambda x: token_logprobs(HIDDEN, WEIGHT, TARGETS, softcap=x)),
        ("clip", lambda x: mutual_information(*PAIRS, estimator="smile", clip=x)),
        ("cross", lambda x: cyclic_consistency(*PAIRS, cross=x)),
        ("within", lambda x: cyclic_consistency(*PAIRS, within=x)),
        ("beta", lambda x: linear_kl(HIDDEN, WEIGHT, HIDDEN, WEIGHT, divergence="js", beta=x)),
    ],
)
def test_a_tensor_without_a_gradient_rule_is_refused(name, call):
    """Its gradient would be dropped silently."""
    call(0.5)
    with pytest.raises(TypeError, match=f"{name}: expected a number, got a tensor"):
        call(torch.tensor(0.5, requires_grad=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: info_nce("a", PAIRS[1]), "query: expected a tensor, got str"),
        (lambda: info_nce(PAIRS[0], PAIRS[1].tolist()), "key: expected a tensor, got list"),
        (lambda: row_logsumexp(PAIRS[0].cpu().numpy(), PAIRS[1]), "query: expected a tensor, got ndarray"),
        (lambda: info_nce(*PAIRS, temperature="x"), "temperature: expected a number, got str"),
        (lambda: info_nce(*PAIRS, temperature=None), "temperature: expected a number, got NoneType"),
        (lambda: info_nce(*PAIRS, pair_weights=[1.0] * 5), "pair_weights: expected a tensor, got list"),
        (lambda: info_nce(*PAIRS, pair_ids=list(range(5))), "pair_ids: expected a tensor, got list"),
        (lambda: info_nce(*PAIRS, label_smoothing="x"), "label_smoothing: expected a number, got str"),
        (lambda: info_nce(*PAIRS, workspace_bytes="1"), "workspace_bytes: expected an integer, got str"),
        (lambda: info_nce(*PAIRS, logit_scale=2.0), "logit_scale: expected a 0-dimensional floating tensor, got float"),
        (lambda: sigmoid_loss(*PAIRS, logit_scale=torch.ones(()), logit_bias=-10.0), "logit_bias: .*, got float"),
        (lambda: mutual_information(*PAIRS, clip="x"), "clip: expected a number, got str"),
        (lambda: linear_kl(HIDDEN, WEIGHT, HIDDEN, WEIGHT, divergence="js", beta="x"), "beta: .* number, got str"),
        (lambda: linear_kl(HIDDEN, WEIGHT, HIDDEN, WEIGHT, token_mask=[True]), "token_mask: .* tensor, got list"),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, ignore_index="x"), "ignore_index: .*, got str"),
        (lambda: linear_cross_entropy(HIDDEN, WEIGHT, TARGETS, z_loss="x"), "z_loss: expected a number, got str"),
        (lambda: token_logprobs(HIDDEN, WEIGHT, TARGETS, softcap="x"), "softcap: expected a number, got str"),
        (
            lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, [0, 4]),
            "cu_seqlens: expected an int32 or int64 tensor, got list",
        ),
        (lambda: sequence_logprobs(HIDDEN, WEIGHT, TARGETS, segment_ids=TARGETS, segments="4"), "segments: .* str"),
        (lambda: segment_pool([1], TARGETS), "hidden: expected a tensor, got list"),
    ],
)
def test_an_argument_of_a_wrong_type_is_refused(call, words):
    with pytest.raises(TypeError, match=f"^{words}"):
        call()


def test_numbers_of_numpy_are_numbers():
    wanted = info_nce(*PAIRS, temperature=0.5)
    assert info_nce(*PAIRS, temperature=np.float32(0.5), workspace_bytes=np.int64(1)) == wanted
