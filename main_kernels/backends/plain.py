"""The plain torch backend: the same chunked algorithm in ordinary torch operations, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from .interface import BoundedKernels, ColumnSums, RowSums, ScoreMap, Upstream


def _poison(s: Tensor, dim: int) -> Tensor:
    """Zero, or NaN where a score along ``dim`` is not finite: an Inf must not pass for a number."""
    return (s * 0).sum(dim)


class PlainBackend:
    bounded: BoundedKernels | None = None

    def reduce_rows(self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, sums: RowSums) -> None:
        s = score_map.apply(raw, sums.maximum.dtype)
        maximum = torch.maximum(sums.maximum, s.amax(1))
        below = s - maximum[:, None]
        weight = below.exp()
        seen = sums.maximum > -torch.inf
        shift = torch.where(seen, sums.maximum - maximum, 0).double()
        shrink = torch.where(seen, shift.exp(), 0)
        if sums.weighted is not None:
            before = shrink * (sums.weighted + shift * sums.total)
            sums.weighted.copy_(before + (weight * below).sum(1))
        sums.total.mul_(shrink).add_(weight.sum(1) + _poison(s, 1))
        sums.maximum.copy_(maximum)
        if targets is not None:
            inside = (targets >= 0) & (targets < s.shape[1])
            at_target = s.gather(1, targets.where(inside, 0)[:, None])
            sums.target.copy_(at_target[:, 0].where(inside, sums.target))
            if sums.rank is not None:
                sums.rank.add_((s > at_target).sum(1))

    def reduce_columns(self, raw: Tensor, score_map: ScoreMap, sums: ColumnSums, first_row: int) -> None:
        s = score_map.apply(raw, sums.maximum.dtype)
        maximum = torch.maximum(sums.maximum, s.amax(0))
        part = (s - maximum).exp().sum(0) + _poison(s, 0)
        shrink = torch.where(sums.maximum > -torch.inf, sums.maximum - maximum, -torch.inf)
        sums.total.mul_(shrink.double().exp()).add_(part)
        sums.maximum.copy_(maximum)
        if sums.rank is not None and sums.target is not None:
            above = s > sums.target
            own = torch.arange(s.shape[0], device=s.device)
            own = own[first_row + own < s.shape[1]]
            above[own, first_row + own] = False  # the pair itself never beats itself
            sums.rank.add_(above.sum(0))

    def weigh_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        upstream: Upstream,
        d_scale: Tensor | None,
    ) -> None:
        r, c = upstream.r, upstream.c
        s = score_map.apply(raw, r.high.dtype)
        g = (s - r.high[:, None]).sub_(r.low[:, None]).exp_().mul_(upstream.a[:, None])
        if upstream.b is not None and c is not None:
            g += (s - c.high).sub_(c.low).exp_().mul_(upstream.b)
        if upstream.d is not None and targets is not None:
            g.scatter_add_(1, targets[:, None], upstream.d[:, None])
        if d_scale is not None:
            d_scale.copy_((g * s).sum(1, dtype=torch.float64) / score_map.scale)
        g *= score_map.scale
        if score_map.softcap:
            g *= 1 - (s / (score_map.scale * score_map.softcap)).square()
        raw.copy_(g)

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        total = _join(high, low) + x
        bits = total.view(torch.int32)
        high.view(torch.int16).copy_(bits >> 16)
        low.copy_(bits)  # keeps the lower 16 bits

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        high.copy_(_join(high, low) * scale[:, None])

    def pool_forward(self, hidden: Tensor, offsets: Tensor, last: bool, normalize: bool) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        lengths = offsets.diff()
        if last:
            pooled = hidden[(offsets[1:] - 1).clamp(min=0)].to(dtype)
        else:
            pooled = hidden.new_zeros(lengths.numel(), hidden.shape[1], dtype=dtype)
            pooled.index_add_(0, _segment_of_row(offsets), hidden[offsets[0] : offsets[-1]].to(dtype))
            pooled /= lengths.clamp(min=1)[:, None]
        pooled = torch.where((lengths > 0)[:, None], pooled, 0)
        norms = pooled.norm(dim=1)
        if normalize:
            pooled = torch.where((norms != 0)[:, None], pooled / norms[:, None], pooled)
        return pooled, norms

    def pool_backward(
        self,
        upstream: Tensor,
        pooled: Tensor,
        norms: Tensor,
        offsets: Tensor,
        rows: int,
        last: bool,
        normalize: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        lengths = offsets.diff()
        row = upstream
        if normalize:
            radial = (upstream * pooled).sum(1, keepdim=True)
            row = torch.where((norms != 0)[:, None], (upstream - radial * pooled) / norms[:, None], 0)
        gradient = upstream.new_zeros(rows, upstream.shape[1], dtype=dtype)
        if last:
            filled = lengths > 0
            gradient[offsets[1:][filled] - 1] = row[filled].to(dtype)
        else:
            row = (row / lengths.clamp(min=1)[:, None]).to(dtype)
            gradient[offsets[0] : offsets[-1]] = row[_segment_of_row(offsets)]
        return gradient


def _join(high: Tensor, low: Tensor) -> Tensor:
    upper = high.view(torch.int16).to(torch.int32) << 16
    return (upper | (low.to(torch.int32) & 0xFFFF)).view(torch.float32)


def _segment_of_row(offsets: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(offsets.numel() - 1, device=offsets.device), offsets.diff())
