"""Whole ops on meta tensors in place of CUDA tensors. Every tensor is allocated on the operands' device, and no value
is read, which would synchronise with the device. Kernel launches are recorded; nothing is compiled."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.jit import JITFunction

from main_kernels import (
    backends,
    checks,
    info_nce,
    linear_cross_entropy,
    linear_kl,
    mutual_information,
    mutual_information_bounds,
    pair_scores,
    row_logsumexp,
    sequence_logprobs,
    sigmoid_loss,
    token_logprobs,
)
from main_kernels.backends import registry
from main_kernels.backends.triton import TritonBackend, configs
from main_kernels.sweep import backward, divergence, forward, products


def number():
    return torch.ones((), device="meta", requires_grad=True)


def targets_of(hidden):
    return torch.empty(len(hidden), dtype=torch.int64, device="meta")


FAKE_CALLS = {
    "token_logprobs": lambda q, k: token_logprobs(q, k, targets_of(q), ignore_index=None).sum(),
    "linear_cross_entropy": lambda q, k: linear_cross_entropy(q, k, targets_of(q), ignore_index=None),
    "linear_kl": lambda q, k: linear_kl(q, k, q.detach(), k.detach()),
    "info_nce": lambda q, k: info_nce(q, k, workspace_bytes=0),
    "info_nce_kept": lambda q, k: info_nce(q, k, label_smoothing=0.1, negatives=k),
    "info_nce_scale": lambda q, k: info_nce(q, k, logit_scale=number()),
    "info_nce_scale_elsewhere": lambda q, k: info_nce(q, k, logit_scale=torch.ones(())),
    "sigmoid_loss": lambda q, k: sigmoid_loss(q, k, logit_scale=number(), logit_bias=number()),
    "sequence_logprobs": lambda q, k: sequence_logprobs(
        q, k, targets_of(q), segment_ids=targets_of(q), segments=7, ignore_index=None
    ).sum(),
    "pair_scores": lambda q, k: pair_scores(q, k).pmi.sum(),
    "row_logsumexp": lambda q, k: row_logsumexp(q, k).sum(),
    "mutual_information": lambda q, k: mutual_information(q, k, workspace_bytes=0),
    "mutual_information_bounds": lambda q, k: sum(mutual_information_bounds(q, k).values()),
}

# scores that the backward computes again; the other calls keep theirs, which cuBLAS computes
WHOLE_ROWS = {
    "linear_kl": {"divergence"},
    "token_logprobs": {"row_loss"},
    "linear_cross_entropy": {"row_loss"},
    "mutual_information": {"row_loss"},
}
KEPT = {
    "pair_scores": {"reduce_rows", "reduce_columns"},
    **{
        name: {"reduce_rows"}
        for name in ("sigmoid_loss", "row_logsumexp", "mutual_information_bounds", "sequence_logprobs")
    },
}
RECOMPUTED = {name: {"two_sided_reduce", "exact_columns"} for name in ("info_nce", "pair_scores")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", FAKE_CALLS)
def test_every_buffer_is_on_the_device_and_nothing_is_read(monkeypatch, name, dtype):
    asked = []

    def run(self, *arguments, grid, warmup, **options):  # type: ignore[no-untyped-def]
        tensors = (getattr(argument, "base", argument) for argument in arguments)
        strangers = {t.device.type for t in tensors if isinstance(t, torch.Tensor)} - {"meta"}
        assert not strangers, f"{self.__name__} is given a tensor of another device"
        asked.append(self.__name__)

    monkeypatch.setattr(torch, "autocast", lambda *_, **options: nullcontext())
    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(configs, "architecture", lambda _: 90)
    monkeypatch.setattr(configs, "multiprocessors", lambda _: 132)
    monkeypatch.setattr(products, "leaves_float32", lambda _: True)
    monkeypatch.setattr(checks, "assert_on_device", lambda ok, message: True)
    monkeypatch.setitem(registry.BACKENDS, "triton", TritonBackend())
    ops = forward.sweep_op, backward.sweep_gradient_op, divergence.divergence_op, divergence.divergence_gradient_op
    for each in (op.definition for op in ops):  # the op itself then runs for meta tensors
        monkeypatch.setattr(each, "_abstract_fn", each._init_fn)
    query, key = (torch.empty(520, 72, dtype=dtype, device="meta").requires_grad_() for _ in range(2))
    with backends.use_backend("triton"):
        gradients = torch.autograd.grad(FAKE_CALLS[name](query, key), (query, key))
    assert all(g.dtype == dtype and g.device.type == "meta" for g in gradients)
    asked = set(asked) - {"reduce_partials"}
    if name in WHOLE_ROWS:
        assert asked == WHOLE_ROWS[name]
    elif dtype != torch.float32 and name in RECOMPUTED:
        assert asked == RECOMPUTED[name] | {"target_scores", "whole_score_grad"}
    else:
        assert asked == KEPT.get(name, {"reduce_both"}) | {"score_grad"}
