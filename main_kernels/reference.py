"""The specification: every public function in a few dense lines of float64, which the tests compare with.

A function takes the arguments of the public function of the same name; its gradients come from autograd. ``product``
computes inner products, and its dtype is that of everything that follows. With ``rough`` the same lines are ordinary
torch code, whose error the tests allow twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .contrastive import MAX_LOGIT_SCALE, PairScores
from .likelihood import TokenStats

Product = Callable[[Tensor, Tensor], Tensor]


def exact(left: Tensor, right: Tensor) -> Tensor:
    """Return left rightᵀ in float64."""
    return left.double() @ right.double().mT


def rough(left: Tensor, right: Tensor) -> Tensor:
    """Return left rightᵀ in float32, computed in the inputs' dtype (float16 in float32: it overflows at 65504)."""
    if left.dtype == torch.float16:
        left, right = left.float(), right.float()
    product = left @ right.mT
    return product.to(torch.promote_types(product.dtype, torch.float32))


def logits(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    product: Product = exact,
) -> Tensor:
    """Return the logits [T, V]; -inf where the bias is."""
    z = product(hidden, weight)
    if bias is not None:
        z = z + bias.to(z)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
        if bias is not None:
            z = z.masked_fill(bias == -math.inf, -math.inf)
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
    product: Product = exact,
) -> TokenStats:
    z = logits(hidden, weight, bias=bias, softcap=softcap, temperature=temperature, product=product)
    scored = targets != ignore_index
    index = targets.where(scored, 0)[:, None]
    logp = z.log_softmax(1)
    entropy = -(logp.exp() * logp.masked_fill(logp == -math.inf, 0)).sum(1)
    rank = (z > z.gather(1, index)).sum(1)
    return TokenStats(
        torch.where(scored, logp.gather(1, index)[:, 0], 0),
        torch.where(scored, entropy, 0),
        rank.where(scored, 0),
        (rank == 0) & scored,
    )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    token_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    product: Product = exact,
) -> Tensor:
    z = logits(hidden, weight, bias=bias, softcap=softcap, product=product)
    scored = targets != ignore_index
    own = z.gather(1, targets.where(scored, 0)[:, None])[:, 0]
    lse = z.logsumexp(1)
    in_part = z > -math.inf
    mean = z.masked_fill(~in_part, 0).sum(1) / in_part.sum(1)
    each = lse - (1 - label_smoothing) * own - label_smoothing * mean + z_loss * lse.square()
    factors = torch.ones_like(each) if token_weights is None else token_weights.to(each)
    loss = torch.where(scored, each * factors, 0)
    total = torch.where(scored, factors, 0).sum()
    return {"none": loss, "mean": loss.sum() / torch.where(total == 0, 1, total), "sum": loss.sum()}[reduction]


def sequence_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor | None = None,
    segment_ids: Tensor | None = None,
    **options: Any,
) -> Tensor:
    logp = token_logprobs(hidden, weight, targets, **options).logprobs
    if cu_seqlens is not None:
        sums = [logp[begin:end].sum() for begin, end in pairwise(cu_seqlens.tolist())]
        return torch.stack(sums) if sums else logp[:0]
    assert segment_ids is not None
    return torch.stack([logp[segment_ids == b].sum() for b in range(int(segment_ids.max()) + 1)])


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float = 0.07,
    logit_scale: Tensor | None = None,
    direction: str = "both",
    pair_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    negatives: Tensor | None = None,
    pair_ids: Tensor | None = None,
    reduction: str = "mean",
    product: Product = exact,
) -> Tensor:
    s = product(query, key)
    scale = s.new_tensor(1 / temperature)
    if logit_scale is not None:
        scale = logit_scale.to(s).clamp(0, MAX_LOGIT_SCALE).exp()
    s = s * scale
    masked = duplicates(pair_ids, s)
    rows, columns = s.masked_fill(masked, -math.inf), s.T.masked_fill(masked, -math.inf)
    if negatives is not None:
        extra = product(query, negatives) if negatives.ndim == 2 else product(query[:, None], negatives)[:, 0]
        rows = torch.cat([rows, extra * scale], 1)

    def cross_entropy(z: Tensor) -> Tensor:
        logp = z.log_softmax(1)
        mean = logp.masked_fill(z == -math.inf, 0).sum(1) / (z > -math.inf).sum(1)
        return -(1 - label_smoothing) * logp.diagonal() - label_smoothing * mean

    by_query, by_key = cross_entropy(rows), cross_entropy(columns)
    loss = {"query": by_query, "key": by_key, "both": (by_query + by_key) / 2}[direction]
    factors = torch.ones_like(loss) if pair_weights is None else pair_weights.to(loss)
    total = factors.sum()
    loss = loss * factors
    return {"none": loss, "mean": loss.sum() / torch.where(total == 0, 1, total), "sum": loss.sum()}[reduction]


def duplicates(ids: Tensor | None, s: Tensor) -> Tensor:
    """Return bool, the shape of s[N, N]: True for different pairs with equal ids."""
    if ids is None:
        return torch.zeros_like(s, dtype=torch.bool)
    return (ids[:, None] == ids) & ~torch.eye(len(s), dtype=torch.bool, device=s.device)


def sigmoid_loss(
    query: Tensor,
    key: Tensor,
    *,
    logit_scale: Tensor,
    logit_bias: Tensor,
    pair_ids: Tensor | None = None,
    reduction: str = "mean",
    product: Product = exact,
) -> Tensor:
    s = product(query, key)
    s = s * logit_scale.to(s).clamp(0, MAX_LOGIT_SCALE).exp() + logit_bias.to(s)
    signs = 2 * torch.eye(len(s), dtype=s.dtype, device=s.device) - 1
    each = -torch.nn.functional.logsigmoid(signs * s)
    loss = each.masked_fill(duplicates(pair_ids, s), 0).sum(1)
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


def pair_scores(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float = 0.07,
    targets: Tensor | None = None,
    pair_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    product: Product = exact,
) -> PairScores:
    s = product(query, key) / temperature
    targets = torch.arange(len(s), dtype=torch.int64, device=s.device) if targets is None else targets
    key_ids = pair_ids if key_ids is None else key_ids
    own = s.gather(1, targets[:, None])
    paired = torch.arange(s.shape[1], dtype=torch.int64, device=s.device) == targets[:, None]
    if pair_ids is not None and key_ids is not None:
        s = s.masked_fill((pair_ids[:, None] == key_ids) & ~paired, -math.inf)
    columns = s[:, targets].T  # row i: the column of its key
    by_query, by_key = (own[:, 0] - z.logsumexp(1) for z in (s, columns))
    entries = (s > -math.inf).sum(1) * (columns > -math.inf).sum(1)
    return PairScores(
        by_query,
        by_key,
        0.5 * (entries.to(s).log() + by_query + by_key),
        (s > own).sum(1).to(s),
        (columns > own).sum(1).to(s),
    )


def row_logsumexp(query: Tensor, key: Tensor, *, temperature: float = 1.0, product: Product = exact) -> Tensor:
    return (product(query, key) / temperature).logsumexp(1)


def segment_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    *,
    mode: str = "mean",
    query: Tensor | None = None,
    row_weights: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    rows = []
    for begin, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        segment = hidden[begin:end].double()
        w = segment.new_ones(end - begin) if row_weights is None else row_weights[begin:end].double()
        total = w.sum()
        if query is not None and bool(w.any()):
            z = segment @ query.double()
            w = w * (z - z[w != 0].max()).clamp(max=700).exp()  # a row of weight 0 may score higher than all others
            total = w.sum()
        if begin == end or total == 0:
            rows.append(hidden.new_zeros(hidden.shape[1], dtype=torch.float64))
            continue
        row = segment[-1] if mode == "last" else (w / total) @ segment
        rows.append(row / row.norm() if normalize and bool(row.detach().any()) else row)
    return torch.stack(rows) if rows else hidden[:0].double()


def cyclic_consistency(query: Tensor, key: Tensor, *, cross: float = 1.0, within: float = 1.0) -> Tensor:
    query, key = query.double(), key.double()
    s = query @ key.T
    squares = cross * (s - s.T).square() + within * (query @ query.T - key @ key.T).square()
    return squares.sum() / max(squares.numel(), 1)


def relational_scores(query: Tensor, key: Tensor) -> Tensor:
    query, key = query.double(), key.double()
    return -(query @ query.T - key @ key.T).square().mean(1)


def mutual_information(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float = 1.0,
    estimator: str = "infonce",
    clip: float = 5.0,
    baseline: Tensor | None = None,
) -> Tensor:
    f = query.double() @ key.double().T / temperature
    joint, product = f.diagonal(), f[~torch.eye(len(f), dtype=torch.bool, device=f.device)]
    if estimator == "infonce":
        return math.log(len(f)) + (joint - f.logsumexp(1)).mean()
    if estimator == "nwj":
        return joint.mean() - (product - 1).exp().mean()
    if estimator == "tuba":
        b = f.new_zeros(len(f)) if baseline is None else baseline.double().expand(len(f))
        return 1 + (joint - b).mean() - (product - b.repeat_interleave(len(f) - 1)).exp().mean()
    if estimator == "dv":
        return joint.mean() - (product.logsumexp(0) - math.log(len(product)))
    if estimator == "club":
        return joint.mean() - f.mean()
    js = logsigmoid(joint).mean() + logsigmoid(-product).mean()  # softplus(f) = -logsigmoid(-f)
    if estimator == "js":
        return js
    value = joint.mean() - product.clamp(-clip, clip).exp().mean().log()
    return value.detach() + (js - js.detach())  # smile


def mutual_information_bounds(
    query: Tensor, key: Tensor, *, temperature: float = 1.0, clip: float = 5.0
) -> dict[str, Tensor]:
    names = ("infonce", "nwj", "tuba", "dv", "js", "smile", "club")
    return {name: mutual_information(query, key, temperature=temperature, estimator=name, clip=clip) for name in names}


def linear_kl(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    divergence: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    token_mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    student = logits(student_hidden, student_weight, temperature=temperature).log_softmax(1)
    teacher = logits(teacher_hidden, teacher_weight, temperature=temperature).log_softmax(1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(1)

    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    rows = {
        "forward": lambda: kl(teacher, student),
        "reverse": lambda: kl(student, teacher),
        "js": lambda: beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture),
    }[divergence]()
    counts = torch.ones_like(rows, dtype=torch.bool) if token_mask is None else token_mask
    rows = torch.where(counts, rows, 0)
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counts.sum().clamp(min=1)}[reduction]
