"""PUBLIC: one call of every public function, with every kind of tensor argument, for what all of them promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import main_kernels
from main_kernels import (
    cyclic_consistency,
    info_nce,
    linear_cross_entropy,
    linear_kl,
    mutual_information,
    mutual_information_bounds,
    pair_scores,
    relational_scores,
    row_logsumexp,
    segment_pool,
    sequence_logprobs,
    sigmoid_loss,
    token_logprobs,
)

Outputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def ids(like: Tensor, columns: int = 7) -> Tensor:
    """int64 [N] in [0, columns), on the device of ``like``[N, D]."""
    return torch.arange(len(like), dtype=torch.int64, device=like.device) % columns


def factors(like: Tensor) -> Tensor:
    """float32 [N], positive."""
    return ids(like).to(torch.float32) + 1


def number(value: float, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=like.device)


def offsets(like: Tensor) -> Tensor:
    rows = len(like)
    return torch.tensor([0, rows // 3, rows // 3, rows], dtype=torch.int64, device=like.device)


def bias(like: Tensor) -> Tensor:
    return ids(like).to(torch.float32) / 8


# name -> call on query[N, D] and key[N, D]; a head is the key with its rows as vocabulary
PUBLIC: dict[str, Callable[[Tensor, Tensor], Outputs]] = {
    "cyclic_consistency": lambda q, k: cyclic_consistency(q, k, within=0.5),
    "relational_scores": lambda q, k: relational_scores(q, k),
    "linear_kl": lambda q, k: linear_kl(q, k, k, k, divergence="js", token_mask=ids(q) != 2),
    "linear_kl_teacher": lambda q, k: linear_kl(k.detach(), q.detach(), q, k, reduction="none"),
    "info_nce": lambda q, k: info_nce(
        q, k, pair_weights=factors(q), pair_ids=ids(q), negatives=k, label_smoothing=0.1, logit_scale=number(0.5, q)
    ),
    "info_nce_own": lambda q, k: info_nce(
        q, k, direction="query", negatives=k[:, None].expand(-1, 2, -1), reduction="none", workspace_bytes=0
    ),
    "sigmoid_loss": lambda q, k: sigmoid_loss(
        q, k, logit_scale=number(0.5, q), logit_bias=number(-1, q), pair_ids=ids(q)
    ),
    "pair_scores": lambda q, k: pair_scores(q, k, pair_ids=ids(q)),
    "pair_scores_bank": lambda q, k: pair_scores(q, k, targets=ids(q, len(q)).flip(0)),
    "row_logsumexp": lambda q, k: row_logsumexp(q, k),
    **{
        f"mutual_information_{name}": lambda q, k, name=name: mutual_information(
            q, k, estimator=name, temperature=2.0, baseline=factors(q) if name == "tuba" else None
        )
        for name in main_kernels.information.ESTIMATORS
    },
    "mutual_information_bounds": lambda q, k: mutual_information_bounds(q, k, temperature=2.0),
    "token_logprobs": lambda q, k: token_logprobs(q, k, ids(q), ignore_index=2, bias=bias(k), softcap=20.0),
    "token_logprobs_stats": lambda q, k: token_logprobs(q, k, ids(q), return_stats=True),
    "linear_cross_entropy": lambda q, k: linear_cross_entropy(
        q, k, ids(q), token_weights=factors(q), label_smoothing=0.1, z_loss=0.01, ignore_index=2
    ),
    "sequence_logprobs": lambda q, k: sequence_logprobs(q, k, ids(q), offsets(q)),
    "sequence_logprobs_ids": lambda q, k: sequence_logprobs(q, k, ids(q), segment_ids=ids(q), segments=7),
    "segment_pool": lambda q, k: segment_pool(q, offsets(q), row_weights=factors(q)),
    "segment_pool_last": lambda q, k: segment_pool(q, offsets(q), mode="last", normalize=False),
    "segment_pool_attention": lambda q, k: segment_pool(q, offsets(q), mode="attention", query=k[0]),
}


def function_of(name: str) -> str:
    """The public function behind a call."""
    return max((f for f in main_kernels.__all__ if name.startswith(f)), key=len)


def listed(outputs: Outputs) -> list[Tensor]:
    """All outputs of a call."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return list(outputs.values() if isinstance(outputs, dict) else outputs)


def values_and_gradients(call: Callable[[Tensor, Tensor], Outputs], query: Tensor, key: Tensor) -> list[Any]:
    """Outputs, then the gradients of the sum of those that have one (None where one does not depend)."""
    outputs = listed(call(query, key))
    total = sum(out.sum() for out in outputs if out.requires_grad)
    return [*(out.detach() for out in outputs), *torch.autograd.grad(total, (query, key), allow_unused=True)]
