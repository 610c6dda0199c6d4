"""cyclic_consistency, relational_scores: structural consistency of pairs, without the N x N matrices it is defined on.

Sums over all N² combinations of pairs need only D x D matrices. With P = Q + K, M = Q - K, A = PᵀP, B = MᵀM, C = MᵀP
and S = QKᵀ:

    sum_ij (S_ij - S_ji)²           = ½ (⟨A, B⟩ - tr(C C))      cross-modal
    sum_ij (q_i·q_j - k_i·k_j)²     = ½ (⟨A, B⟩ + tr(C C))      within-modal

The cost is O(N D²). Unlike the textbook form with QQᵀ and KKᵀ, nothing cancels if Q is close to K. Both passes go
through the rows in chunks, so the only memory beyond inputs and gradients is a few D x D matrices and one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .derivatives import no_transforms
from .registration import Op

_CHUNK_ENTRIES = 1 << 19  # of P and of M: 2 MiB each in float32, and products of a thousand rows if D is 512


def cyclic_consistency(query: Tensor, key: Tensor, *, cross: float = 1.0, within: float = 1.0) -> Tensor:
    """Compute the two cyclic terms of CyCLIP (Goel et al., 2022).

    The result is the mean over all N² entries of ``cross (S_ij - S_ji)² + within (q_i·q_j - k_i·k_j)²`` with
    S = query keyᵀ.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64. N may be 0. Normalise the rows first for cosine
            similarity.
        key: [N, D], dtype and device of query. Row i is the pair of row i of query.
        cross: not negative. Weight of the cross-modal term.
        within: not negative. Weight of the within-modal term. Equal weights save one product of three.

    Returns:
        float32 scalar (float64 for float64 inputs), differentiable, no unit. 0 is perfect consistency, and the value
        for N = 0.

    Raises:
        ValueError: a shape, dtype, device or weight is invalid. The message names the argument.
    """
    checks.check_pairs(query, key)
    for name, value in (("cross", cross), ("within", within)):
        checks.check_not_negative(name, value)
    no_transforms("cyclic_consistency", query, key)
    return _cyclic(CyclicArgs(query, key, cross, within)).mean


def relational_scores(query: Tensor, key: Tensor) -> Tensor:
    """Score how consistently each pair relates to the others: ``-mean_j (q_i·q_j - k_i·k_j)²``.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64. N may be 0.
        key: [N, D], dtype and device of query. Row i is the pair of row i of query.

    Returns:
        float32 [N] (float64 for float64 inputs), differentiable, no unit. 0 is best.

    Raises:
        ValueError: a shape, dtype or device is invalid. The message names the argument.
    """
    checks.check_pairs(query, key)
    no_transforms("relational_scores", query, key)
    return _relational(RelationalArgs(query, key)).scores


class Moments(NamedTuple):
    """The matrices A, B and C [D, D]; C is [0, D] if it is not needed."""

    a: Tensor
    b: Tensor
    c: Tensor


class PairGrads(NamedTuple):
    """Gradients of query and key [N, D], [0, D] if not needed."""

    query: Tensor
    key: Tensor


class _SavedTensors(NamedTuple):
    query: Tensor
    key: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


class CyclicArgs(NamedTuple):
    """Arguments of ``main_kernels::cyclic_consistency``."""

    query: Tensor
    key: Tensor
    cross: float
    within: float


class CyclicOutputs(NamedTuple):
    """The mean, and the moments for the backward; c is empty if its trace has no weight."""

    mean: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


class CyclicGradArgs(NamedTuple):
    """Arguments of ``main_kernels::cyclic_consistency_gradient``."""

    mean_grad: Tensor
    query: Tensor
    key: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    cross: float
    within: float
    grad_query: bool
    grad_key: bool


def _run_cyclic(args: CyclicArgs) -> CyclicOutputs:
    a, b, c = _moments(args.query, args.key, has_c=args.within != args.cross)
    both = torch.sum(a * b, dtype=torch.float64)  # ⟨A, B⟩
    trace = torch.sum(c * c.T, dtype=torch.float64) if c.numel() else 0.0  # tr(C C)
    cross, within = args.cross, args.within
    mean = 0.5 * ((cross + within) * both + (within - cross) * trace) / max(args.query.shape[0], 1) ** 2
    return CyclicOutputs(mean.to(a.dtype), a, b, c)


def _fake_cyclic(args: CyclicArgs) -> CyclicOutputs:
    query, width = args.query, args.query.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    heights = (width, width, width if args.within != args.cross else 0)
    return CyclicOutputs(query.new_empty((), dtype=wide), *(query.new_empty(n, width, dtype=wide) for n in heights))


def _run_cyclic_gradient(args: CyclicGradArgs) -> PairGrads:
    """Compute dP = 2 k₁ P B + 2 k₂ M Cᵀ and dM = 2 k₁ M A + 2 k₂ P C, with k₁ = (within + cross) / 2N² and
    k₂ = (within - cross) / 2N²."""
    unit = args.mean_grad / max(args.query.shape[0], 1) ** 2
    straight, crossed = unit * (args.within + args.cross), unit * (args.within - args.cross)
    moments = Moments(straight * args.a, straight * args.b, crossed * args.c)
    grads = _empty_grads(args)
    for rows, plus, minus in _chunks(args.query, args.key):
        _write(grads, rows, _chunk_grads(plus, minus, moments, args.grad_query, args.grad_key))
    return grads


def _cyclic_gradient_flops(args: CyclicGradArgs) -> int:
    return _moment_flops(args.query, 2 * (args.grad_query + args.grad_key) if args.c.numel() else 2)


_cyclic = Op(
    "cyclic_consistency",
    CyclicArgs,
    CyclicOutputs,
    _run_cyclic,
    fake=_fake_cyclic,
    flops=lambda args: _moment_flops(args.query, 2 if args.cross == args.within else 3),
)
_cyclic_gradient = Op(
    "cyclic_consistency_gradient",
    CyclicGradArgs,
    PairGrads,
    _run_cyclic_gradient,
    fake=lambda args: _empty_grads(args),
    flops=_cyclic_gradient_flops,
)


def _save_cyclic(ctx: Any, args: CyclicArgs, outputs: CyclicOutputs) -> None:
    ctx.save_for_backward(*_SavedTensors(args.query, args.key, *_moments_of(outputs)))
    ctx.cross, ctx.within = args.cross, args.within
    ctx.mark_non_differentiable(*_moments_of(outputs))


def _backward_cyclic(ctx: Any, grads: CyclicOutputs, needs_grad: CyclicArgs) -> dict[str, Tensor | None]:
    args = CyclicGradArgs(
        mean_grad=grads.mean,
        **_SavedTensors(*ctx.saved_tensors)._asdict(),
        cross=ctx.cross,
        within=ctx.within,
        grad_query=bool(needs_grad.query),
        grad_key=bool(needs_grad.key),
    )
    return _needed(_cyclic_gradient(args), args)


_cyclic.register_autograd("cyclic_consistency", save=_save_cyclic, backward=_backward_cyclic)


class RelationalArgs(NamedTuple):
    """Arguments of ``main_kernels::relational_scores``."""

    query: Tensor
    key: Tensor


class RelationalOutputs(NamedTuple):
    """The scores [N], and the moments for the backward."""

    scores: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


class RelationalGradArgs(NamedTuple):
    """Arguments of ``main_kernels::relational_scores_gradient``."""

    scores_grad: Tensor
    query: Tensor
    key: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    grad_query: bool
    grad_key: bool


def _run_relational(args: RelationalArgs) -> RelationalOutputs:
    query, key = args
    a, b, c = _moments(query, key)
    scores = a.new_empty(query.shape[0])
    for rows, plus, minus in _chunks(query, key):
        squares = ((plus @ b) * plus).sum(1) + ((minus @ a) * minus).sum(1) + 2 * ((plus @ c) * minus).sum(1)
        scores[rows] = squares / (-4 * query.shape[0])
    return RelationalOutputs(scores, a, b, c)


def _fake_relational(args: RelationalArgs) -> RelationalOutputs:
    (count, width), wide = args.query.shape, torch.promote_types(args.query.dtype, torch.float32)
    moments = (args.query.new_empty(width, width, dtype=wide) for _ in range(3))
    return RelationalOutputs(args.query.new_empty(count, dtype=wide), *moments)


def _run_relational_gradient(args: RelationalGradArgs) -> PairGrads:
    """A score is its row against the moments of all rows, so its gradient has a part from each."""
    query, key = args.query, args.key
    weights = args.scores_grad / (-2 * max(query.shape[0], 1))
    own, others = Moments(args.a, args.b, args.c), _moments(query, key, weights=weights)
    grads = _empty_grads(args)
    for rows, plus, minus in _chunks(query, key):
        by_row = _chunk_grads(plus, minus, own, args.grad_query, args.grad_key)
        by_moments = _chunk_grads(plus, minus, others, args.grad_query, args.grad_key)
        parts = [x.mul_(weights[rows, None]).add_(y) for x, y in zip(by_row, by_moments, strict=True)]
        _write(grads, rows, parts)
    return grads


_relational = Op(
    "relational_scores",
    RelationalArgs,
    RelationalOutputs,
    _run_relational,
    fake=_fake_relational,
    flops=lambda args: _moment_flops(args.query, 6),
)
_relational_gradient = Op(
    "relational_scores_gradient",
    RelationalGradArgs,
    PairGrads,
    _run_relational_gradient,
    fake=lambda args: _empty_grads(args),
    flops=lambda args: _moment_flops(args.query, 3 + 4 * (args.grad_query + args.grad_key)),
)


def _save_relational(ctx: Any, args: RelationalArgs, outputs: RelationalOutputs) -> None:
    ctx.save_for_backward(*_SavedTensors(args.query, args.key, *_moments_of(outputs)))
    ctx.mark_non_differentiable(*_moments_of(outputs))


def _backward_relational(ctx: Any, grads: RelationalOutputs, needs_grad: RelationalArgs) -> dict[str, Tensor | None]:
    args = RelationalGradArgs(
        scores_grad=grads.scores,
        **_SavedTensors(*ctx.saved_tensors)._asdict(),
        grad_query=bool(needs_grad.query),
        grad_key=bool(needs_grad.key),
    )
    return _needed(_relational_gradient(args), args)


_relational.register_autograd("relational_scores", save=_save_relational, backward=_backward_relational)


def _chunks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield chunks of rows with their P [c, D] and M [c, D] in the accumulator dtype."""
    wide = torch.promote_types(query.dtype, torch.float32)
    step = max(_CHUNK_ENTRIES // query.shape[1], 64)
    for begin in range(0, query.shape[0], step):
        rows = slice(begin, min(begin + step, query.shape[0]))
        q, k = query[rows].to(wide), key[rows].to(wide)
        yield rows, q + k, q - k


def _moments(query: Tensor, key: Tensor, *, has_c: bool = True, weights: Tensor | None = None) -> Moments:
    """Compute A, B and, if ``has_c``, C, with row i counted weights[i] times."""
    width, wide = query.shape[1], torch.promote_types(query.dtype, torch.float32)
    a, b, c = (query.new_zeros(n, width, dtype=wide) for n in (width, width, width if has_c else 0))
    for rows, plus, minus in _chunks(query, key):
        p, m = (plus, minus) if weights is None else (plus * weights[rows, None], minus * weights[rows, None])
        a.addmm_(p.T, plus)
        b.addmm_(m.T, minus)
        if has_c:
            c.addmm_(m.T, plus)
    return Moments(a, b, c)


def _moments_of(outputs: CyclicOutputs | RelationalOutputs) -> Moments:
    return Moments(outputs.a, outputs.b, outputs.c)


def _moment_flops(query: Tensor, products: int) -> int:
    return 2 * products * query.shape[0] * query.shape[1] ** 2


def _chunk_grads(plus: Tensor, minus: Tensor, moments: Moments, grad_query: bool, grad_key: bool) -> list[Tensor]:
    """Return P B + M Cᵀ ± (M A + P C) for each side that needs it, + for the query and - for the key.

    Costs two products per side, or two for both if C is empty."""
    a, b, c = moments
    signs = [sign for sign, is_needed in ((1, grad_query), (-1, grad_key)) if is_needed]
    if not c.numel():
        by_plus, by_minus = plus @ b, minus @ a
        return [by_plus + sign * by_minus for sign in signs]
    return [(plus @ (b + sign * c)).addmm_(minus, c.T + sign * a) for sign in signs]


def _empty_grads(args: CyclicGradArgs | RelationalGradArgs) -> PairGrads:
    sides = ((args.query, args.grad_query), (args.key, args.grad_key))
    return PairGrads(*(t.new_empty(t.shape if is_needed else (0, t.shape[1])) for t, is_needed in sides))


def _write(grads: PairGrads, rows: slice, parts: list[Tensor]) -> None:
    """Write one part to each gradient that is needed."""
    for grad, part in zip((g for g in grads if g.shape[0]), parts, strict=True):
        grad[rows] = part


def _needed(grads: PairGrads, args: CyclicGradArgs | RelationalGradArgs) -> dict[str, Tensor | None]:
    return {"query": grads.query if args.grad_query else None, "key": grads.key if args.grad_key else None}
