"""Cases of segment pooling, which is memory-bound: compared with one read and one copy of the states."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Case, Row, Target, op

SHAPES = {
    "small": {"t": 8192, "d": 512, "b": 64},
    "medium": {"t": 16384, "d": 1024, "b": 128},
    "large": {"t": 65536, "d": 1024, "b": 512},
}


def packed(dtype: torch.dtype, t: int, d: int, b: int) -> tuple[Row, Tensor, Tensor, Tensor]:
    """Return the row with its floors, states [T, D], offsets [B + 1] and the segment of each state [T]."""
    hidden = torch.randn(t, d).to(dtype).requires_grad_()
    cuts = torch.randperm(t - 1)[: b - 1].sort().values + 1  # random lengths, none empty
    offsets = torch.cat([torch.tensor([0]), cuts, torch.tensor([t])])
    segment = torch.arange(b).repeat_interleave(offsets.diff())
    row = Row([hidden], bytes_read=hidden.nbytes)
    states, copy = hidden.detach(), torch.empty_like(hidden.detach())
    row.floors["read"] = [states.sum]
    row.floors["copy"] = [lambda: copy.copy_(states)]
    return row, hidden, offsets, segment


def both_phases(row: Row, name: str, value: Callable[[], Tensor]) -> None:
    row.forward(f"{name}_forward", value)
    row.train(name, value)


def mean(dtype: torch.dtype, t: int, d: int, b: int) -> Row:
    row, hidden, offsets, segment = packed(dtype, t, d, b)
    upstream = torch.randn(b, d).to(dtype)
    pool, lengths, order = op("segment_pool"), offsets.diff().tolist(), torch.arange(t)

    def value(pooled: Tensor) -> Tensor:
        return (upstream * pooled).sum(dtype=torch.float32)

    def ours() -> Tensor:
        return value(pool(hidden, offsets, mode="mean"))

    def loop() -> Tensor:
        means = torch.stack([piece.mean(0, dtype=torch.float32) for piece in hidden.split(lengths)])
        return value(F.normalize(means).to(dtype))

    def bag() -> Tensor:
        return value(F.normalize(F.embedding_bag(order, hidden, offsets[:-1], mode="mean").float()).to(dtype))

    def added() -> Tensor:
        sums = torch.zeros(b, d).index_add(0, segment, hidden.float())
        return value(F.normalize(sums / offsets.diff()[:, None]).to(dtype))

    both_phases(row, "ours", ours)
    both_phases(row, "eager", loop)
    both_phases(row, "torch_embedding_bag", bag)
    row.train("torch_compile", torch.compile(added, dynamic=False), compiled=True)
    return row


def attention(dtype: torch.dtype, t: int, d: int, b: int) -> Row:
    row, hidden, offsets, segment = packed(dtype, t, d, b)
    query, upstream = (torch.randn(d) / d**0.5).to(dtype).requires_grad_(), torch.randn(b, d).to(dtype)
    row.leaves = [hidden, query]
    pool = op("segment_pool", "query")

    def ours() -> Tensor:
        return (upstream * pool(hidden, offsets, mode="attention", query=query)).sum(dtype=torch.float32)

    def dense() -> Tensor:
        scores = (hidden @ query).float()
        top = torch.full((b,), -torch.inf).scatter_reduce(0, segment, scores.detach(), "amax")
        exponentials = (scores - top[segment]).exp()
        probabilities = exponentials / torch.zeros(b).index_add(0, segment, exponentials)[segment]
        pooled = torch.zeros(b, d).index_add(0, segment, probabilities[:, None] * hidden.float())
        return (upstream * F.normalize(pooled).to(dtype)).sum(dtype=torch.float32)

    both_phases(row, "ours", ours)
    row.forward("eager_forward", dense)
    row.dense(dense)
    return row


CASES = [
    Case(
        f"segment_pool_{build.__name__}",
        "pooling",
        build,
        SHAPES,
        [Target("ours_forward", "read"), Target("ours", "copy")],
    )
    for build in (mean, attention)
]
