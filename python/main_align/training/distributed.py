"""gather_rows, sum_over_processes: all-gather embeddings with gradients, so the loss does not depend on world size."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.compiler.disable  # processes have different numbers of rows, and each would compile other collectives
def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of every process in the order of ranks: [n_rank, ...] each -> [sum n, ...]; differentiable.

    For a loss that every process computes from all rows and whose gradient DDP or FSDP averages over processes. The
    gradient of a process's own rows is multiplied by the world size, which the average divides by. The model's gradient
    is then that of one process with all rows, and the backward needs no communication.
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
        most = max(counts)  # collectives need one shape, and ranks may have different numbers of rows
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        before = sum(counts[: dist.get_rank()])
        ctx.rank_slice = slice(before, before + len(rows))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream[ctx.rank_slice] * world_size()


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum over all processes of a tensor that has the same shape on each."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values
