"""ReductionSpec, Lse, RowAccumulators and ColumnAccumulators: what the forward pass reduces, and its running sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import compress

import torch
from torch import Tensor


def select_rows(vector: Tensor, rows: slice | Tensor) -> Tensor:
    """Return some of the entries. All of them are the vector itself: a slice takes as long as a small kernel's launch,
    and most problems on a GPU are a single chunk."""
    return vector if is_whole(rows, vector) else vector[rows]


def is_whole(rows: slice | Tensor, vector: Tensor) -> bool:
    """Return True for a slice from the first entry of a vector to its last."""
    return isinstance(rows, slice) and rows.start == 0 and rows.stop == vector.shape[0]


_ROW_SUMS = ("total", "weighted", "rank", "logits", "softplus", "sigmoid", "clipped")
_COLUMN_SUMS = ("total", "rank", "logits")


@dataclass(frozen=True)
class ReductionSpec:
    """The reductions that a forward pass computes besides the target scores."""

    row_lse: bool = True
    column_lse: bool = False  # the columns' log-sum-exps, and the other requested reductions along columns
    entropy: bool = False
    ranks: bool = False  # of the targets' scores
    logit_sums: bool = False
    softplus: bool = False
    sigmoid: bool = False  # with softplus: the sum of its derivatives
    clip: float = 0.0  # positive: also the clipped log-sum-exps of the rows

    @cached_property
    def row_sums(self) -> tuple[str, ...]:
        """The running sums of RowAccumulators that it takes, besides the maximum."""
        first = self.row_lse, self.entropy, self.ranks, self.logit_sums
        return tuple(compress(_ROW_SUMS, (*first, self.softplus, self.sigmoid, self.clip > 0)))

    @cached_property
    def column_sums(self) -> tuple[str, ...]:
        """The same of ColumnAccumulators; empty if no column is reduced."""
        return tuple(compress(_COLUMN_SUMS, (True, self.ranks, self.logit_sums))) if self.column_lse else ()


@dataclass(frozen=True)
class Lse:
    """Log-sum-exps as unevaluated sums of two float32 numbers, ``high + low``.

    At logits of 1e4 one float32 is only accurate to 1e-3, and exp(s - lse) would inherit that error."""

    high: Tensor
    low: Tensor

    @classmethod
    def of(cls, maximum: Tensor, total: Tensor) -> Lse:
        """Split ``maximum + log(total)``, with ``total`` in float64; the log-sum-exp of an empty set is (-inf, 0)."""
        lse = total.log().add_(maximum)
        high = lse.to(maximum.dtype)
        return cls(high, (lse - high).nan_to_num_(0.0).to(maximum.dtype))  # -inf - -inf is NaN

    @classmethod
    def empty_like(cls, vector: Tensor) -> Lse:
        """Allocate one for each entry of a vector."""
        return cls(torch.empty_like(vector), torch.empty_like(vector))

    def reciprocal(self) -> Tensor:
        """Return exp(-lse) in float64."""
        return self.high.double().add_(self.low).neg_().exp_()

    def __getitem__(self, rows: slice | Tensor) -> Lse:
        return Lse(select_rows(self.high, rows), select_rows(self.low, rows))


def _sums(
    names: tuple[str, ...], n: int, dtype: torch.dtype, device: torch.device, *, filled: bool
) -> dict[str, Tensor]:
    allocate, kinds = torch.zeros if filled else torch.empty, {"rank": dtype}
    return {name: allocate(n, dtype=kinds.get(name, torch.float64), device=device) for name in names}


def _maxima(n: int, dtype: torch.dtype, device: torch.device, value: float, *, filled: bool) -> Tensor:
    if not filled:
        return torch.empty(n, dtype=dtype, device=device)
    return torch.full((n,), value, dtype=dtype, device=device)


@dataclass
class RowAccumulators:
    """Running row reductions over the unmasked entries. A backend adds each chunk to a slice of them.

    Every field except ``maximum`` and ``target`` is None if it was not requested."""

    maximum: Tensor  # [N]
    target: Tensor  # [N] score of the row's target, 0 if it has none
    total: Tensor | None = None  # [N] float64, sum of exp(s - maximum)
    weighted: Tensor | None = None  # [N] float64, sum of exp(s - maximum) (s - maximum)
    rank: Tensor | None = None  # [N] number of scores above the target's
    logits: Tensor | None = None  # [N] float64, sum of s
    softplus: Tensor | None = None  # [N] float64, sum of log(1 + exp s)
    sigmoid: Tensor | None = None  # [N] float64, sum of 1 / (1 + exp -s)
    clipped: Tensor | None = None  # [N] float64, sum of exp(clamp(s) - clamp(maximum)), clamped to +-clip
    clip: float = 0.0
    finished_lse: Lse | None = (
        None  # room that the backend fills; the gradient of row_loss_ agrees with these very bits
    )

    @classmethod
    def empty(
        cls,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        spec: ReductionSpec,
        *,
        maximum: float = -torch.inf,
        filled: bool = True,
    ) -> RowAccumulators:
        """Allocate accumulators for ``rows`` rows that have seen no score. Those that are not ``filled`` must be
        written before they are read."""
        return cls(
            maximum=_maxima(rows, dtype, device, maximum, filled=filled),
            target=(torch.zeros if filled else torch.empty)(rows, dtype=dtype, device=device),
            clip=spec.clip,
            **_sums(spec.row_sums, rows, dtype, device, filled=filled),  # type: ignore[arg-type]
        )

    def expect_lse(self) -> None:
        """Make room for the log-sum-exps, if they are requested."""
        if self.total is not None:
            self.finished_lse = Lse.empty_like(self.maximum)

    @property
    def sums(self) -> tuple[str, ...]:
        """The running sums that there are, besides the maximum."""
        return tuple([name for name in _ROW_SUMS if getattr(self, name) is not None])

    def __getitem__(self, rows: slice) -> RowAccumulators:
        if is_whole(rows, self.maximum):
            return self
        return RowAccumulators(*(v[rows] if isinstance(v, Tensor | Lse) else v for v in vars(self).values()))  # type: ignore[arg-type]

    def lse(self) -> Lse | None:
        if self.finished_lse is not None:
            return self.finished_lse
        return None if self.total is None else Lse.of(self.maximum, self.total)

    def entropy(self) -> Tensor | None:
        """Entropy of the softmax over the unmasked entries; 0 for a row without any."""
        if self.weighted is None or self.total is None:
            return None
        entropy = self.total.log() - self.weighted / self.total
        return torch.where(self.total == 0, 0, entropy).to(self.maximum.dtype)

    def clipped_lse(self) -> Tensor | None:
        if self.clipped is None:
            return None
        return (self.maximum.clamp(-self.clip, self.clip) + self.clipped.log()).to(self.maximum.dtype)


@dataclass
class ColumnAccumulators:
    """Running column reductions over the chunks seen so far."""

    maximum: Tensor  # [M]
    total: Tensor  # [M] float64, sum of exp(s - maximum)
    target: Tensor | None = None  # [M] score of the row whose target is the column, which its rank counts from
    rank: Tensor | None = None  # [M] number of scores above that
    logits: Tensor | None = None  # [M] float64, sum of s
    finished_lse: Lse | None = None  # room that the backend fills

    @classmethod
    def empty(
        cls,
        columns: int,
        dtype: torch.dtype,
        device: torch.device,
        spec: ReductionSpec,
        *,
        maximum: float = -torch.inf,
        filled: bool = True,
    ) -> ColumnAccumulators:
        """Allocate accumulators for ``columns`` columns, as RowAccumulators.empty does."""
        return cls(
            maximum=_maxima(columns, dtype, device, maximum, filled=filled),
            **_sums(spec.column_sums, columns, dtype, device, filled=filled),  # type: ignore[arg-type]
        )

    def expect_lse(self) -> None:
        """Make room for the log-sum-exps."""
        self.finished_lse = Lse.empty_like(self.maximum)

    @property
    def sums(self) -> tuple[str, ...]:
        """The running sums that there are, besides the maximum."""
        return tuple([name for name in _COLUMN_SUMS if getattr(self, name) is not None])

    def lse(self) -> Lse:
        return Lse.of(self.maximum, self.total) if self.finished_lse is None else self.finished_lse
