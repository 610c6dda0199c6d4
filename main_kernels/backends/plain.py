"""The plain torch backend: the same chunked algorithm in ordinary torch operations, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from .interface import BoundedKernels, ColumnSums, Mask, RowSums, ScoreMap, Upstream


def _poison(s: Tensor, dim: int) -> Tensor:
    """Zero, or NaN where a score along ``dim`` is not finite: an Inf must not pass for a number."""
    return (s * 0).sum(dim)


def _left_out(columns: int, targets: Tensor | None, mask: Mask) -> Tensor:
    """[c, M] bool, which entries take no part."""
    out = mask.rows[:, None] == mask.columns
    if targets is None:
        return out
    own = torch.arange(columns, device=out.device) == targets[:, None]
    return out & ~own if mask.keep_target else out | own


class PlainBackend:
    bounded: BoundedKernels | None = None

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowSums
    ) -> None:
        s = score_map.apply(raw, sums.maximum.dtype)
        poison = _poison(s, 1)
        at_target = None
        if targets is not None:
            inside = (targets >= 0) & (targets < s.shape[1])
            at_target = s.gather(1, targets.where(inside, 0)[:, None])
            sums.target.copy_(at_target[:, 0].where(inside, sums.target))
        if mask is not None:
            s = s.masked_fill(_left_out(s.shape[1], targets, mask), -torch.inf)
        if sums.logits is not None:
            sums.logits.add_(s.where(s > -torch.inf, 0).sum(1) + poison)
        if sums.softplus is not None:
            sums.softplus.add_(_softplus(s).sum(1) + poison)
        if sums.rank is not None and at_target is not None:
            sums.rank.add_((s > at_target).sum(1))
        if sums.total is None:
            return
        maximum = torch.maximum(sums.maximum, s.amax(1))
        zero = maximum.where(maximum > -torch.inf, 0)  # nothing seen yet: e^-inf is 0, not NaN
        below = s - zero[:, None]
        weight = below.exp()
        seen = sums.maximum > -torch.inf
        shift = torch.where(seen, sums.maximum - maximum, 0).double()
        if sums.weighted is not None:
            before = shift.exp() * (sums.weighted + shift * sums.total)
            sums.weighted.copy_(before + (weight * below.where(s > -torch.inf, 0)).sum(1))
        if sums.clipped is not None:
            start = zero.clamp(-sums.clip, sums.clip)
            moved = torch.where(seen, sums.maximum.clamp(-sums.clip, sums.clip) - start, 0).double()
            part = (s.clamp(-sums.clip, sums.clip) - start[:, None]).exp().where(s > -torch.inf, 0)
            sums.clipped.mul_(moved.exp()).add_(part.sum(1) + poison)
        sums.total.mul_(shift.exp()).add_(weight.sum(1) + poison)
        sums.maximum.copy_(maximum)

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnSums
    ) -> None:
        s = score_map.apply(raw, sums.maximum.dtype)
        poison = _poison(s, 0)
        if mask is not None:
            s = s.masked_fill(_left_out(s.shape[1], targets, mask), -torch.inf)
        if sums.logits is not None:
            sums.logits.add_(s.where(s > -torch.inf, 0).sum(0))
        maximum = torch.maximum(sums.maximum, s.amax(0))
        part = (s - maximum.where(maximum > -torch.inf, 0)).exp().sum(0) + poison
        shift = torch.where(sums.maximum > -torch.inf, sums.maximum - maximum, 0)
        sums.total.mul_(shift.double().exp()).add_(part)
        sums.maximum.copy_(maximum)
        if sums.rank is not None and sums.target is not None and targets is not None:
            above = (s > sums.target).scatter(1, targets[:, None], False)  # the pair itself never beats itself
            sums.rank.add_(above.sum(0))

    def weigh_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        upstream: Upstream,
        d_scale: Tensor | None,
    ) -> None:
        r, c = upstream.r, upstream.c
        s = score_map.apply(raw, torch.promote_types(raw.dtype, torch.float32))
        g = torch.zeros_like(s)
        if upstream.a is not None and r is not None:
            g = (s - r.high[:, None]).sub_(r.low[:, None]).exp_().mul_(upstream.a[:, None])
        if upstream.b is not None and c is not None:
            g += (s - c.high).sub_(c.low).exp_().mul_(upstream.b)
        if upstream.e is not None:
            g += s.sigmoid() * upstream.e[:, None]
        if upstream.u is not None:
            g += upstream.u[:, None]
        if upstream.v is not None:
            g += upstream.v
        if mask is not None:
            g.masked_fill_(_left_out(s.shape[1], targets, mask), 0)
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


def _softplus(s: Tensor) -> Tensor:
    """log(1 + exp s) without F.softplus's switch to s above its threshold."""
    return s.clamp(min=0) + (-s.abs()).exp().log1p()


def _join(high: Tensor, low: Tensor) -> Tensor:
    upper = high.view(torch.int16).to(torch.int32) << 16
    return (upper | (low.to(torch.int32) & 0xFFFF)).view(torch.float32)


def _segment_of_row(offsets: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(offsets.numel() - 1, device=offsets.device), offsets.diff())
