"""Rows of all processes: the same contrast whatever the world size."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of every process, in the order of ranks: [n_rank, ...] of each -> [sum n, ...]. Differentiable.

    For a loss that every process computes from all rows and that DDP or FSDP averages over processes: the gradient of
    a process's own rows is multiplied by the world size, which that average takes back. So the model's gradient is
    that of one process with all rows, in scale and in direction, and the backward communicates nothing.
    """
    if world_size() == 1:
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        size = torch.tensor([len(rows)], dtype=torch.int64, device=rows.device)
        sizes = [torch.zeros_like(size) for _ in range(world_size())]
        dist.all_gather(sizes, size)
        counts = torch.cat(sizes).tolist()
        most = max(counts)  # ranks may hold different numbers of rows; collectives want one shape
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        everything = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everything, padded)
        before = sum(counts[: dist.get_rank()])
        ctx.mine = slice(before, before + len(rows))
        return torch.cat([part[:count] for part, count in zip(everything, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream[ctx.mine] * world_size()


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor of one shape over all processes."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values
