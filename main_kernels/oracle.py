"""The specification: every public function, dense, in float64, in a few lines each. Tests compare with it.

Arguments are those of the functions of the same name; gradients come from autograd.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .contrastive import MAX_LOGIT_SCALE, PairScores
from .likelihood import TokenStats


def logits(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """float64 [T, V]."""
    z = hidden.double() @ weight.double().T
    if bias is not None:
        z = z + bias.double()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return z / temperature


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> TokenStats:
    z = logits(hidden, weight, bias=bias, softcap=softcap, temperature=temperature)
    scored = targets != ignore_index
    index = targets.where(scored, 0)[:, None]
    logp = z.log_softmax(1)
    entropy = -(logp.exp() * logp).sum(1)
    rank = (z > z.gather(1, index)).sum(1)
    return TokenStats(
        torch.where(scored, logp.gather(1, index)[:, 0], 0),
        torch.where(scored, entropy, 0),
        rank.where(scored, 0),
        (rank == 0) & scored,
    )


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float = 0.07,
    logit_scale: Tensor | None = None,
    direction: str = "both",
    reduction: str = "mean",
) -> Tensor:
    scale: Tensor | float = 1 / temperature
    if logit_scale is not None:
        scale = logit_scale.double().clamp(0, MAX_LOGIT_SCALE).exp()
    s = query.double() @ key.double().T * scale
    by_query = s.logsumexp(1) - s.diagonal()
    by_key = s.logsumexp(0) - s.diagonal()
    loss = {"query": by_query, "key": by_key, "both": (by_query + by_key) / 2}[direction]
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


def pair_scores(query: Tensor, key: Tensor, *, temperature: float = 0.07) -> PairScores:
    s = query.double() @ key.double().T / temperature
    own = s.diagonal()
    rows, columns = s.logsumexp(1), s.logsumexp(0)
    return PairScores(
        own - rows,
        own - columns,
        math.log(len(s)) + own - (rows + columns) / 2,
        (s > own[:, None]).sum(1).double(),
        (s > own).sum(0).double(),
    )


def row_logsumexp(query: Tensor, key: Tensor, *, temperature: float = 1.0) -> Tensor:
    return (query.double() @ key.double().T / temperature).logsumexp(1)


def segment_pool(hidden: Tensor, cu_seqlens: Tensor, *, mode: str = "mean", normalize: bool = True) -> Tensor:
    rows = []
    for begin, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        segment = hidden[begin:end].double()
        if begin == end:
            rows.append(hidden.new_zeros(hidden.shape[1], dtype=torch.float64))
            continue
        row = segment.mean(0) if mode == "mean" else segment[-1]
        rows.append(row / row.norm() if normalize and bool(row.detach().any()) else row)
    return torch.stack(rows)


def cyclic_consistency(query: Tensor, key: Tensor, *, cross: float = 1.0, within: float = 1.0) -> Tensor:
    query, key = query.double(), key.double()
    s = query @ key.T
    return (cross * (s - s.T).square() + within * (query @ query.T - key @ key.T).square()).mean()


def relational_scores(query: Tensor, key: Tensor) -> Tensor:
    query, key = query.double(), key.double()
    return -(query @ query.T - key @ key.T).square().mean(1)
