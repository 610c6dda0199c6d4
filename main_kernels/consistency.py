"""Structural consistency: does every query sit among the queries as its key sits among the keys?

Sums over all N² pairs of pairs, by D x D matrices. With P = Q + K, M = Q - K, A = PᵀP, B = MᵀM, C = MᵀP and S = QKᵀ:

    sum_ij (S_ij - S_ji)²           = ½ (⟨A, B⟩ - tr(C C))      cross-modal
    sum_ij (q_i·q_j - k_i·k_j)²     = ½ (⟨A, B⟩ + tr(C C))      within-modal

O(N D²) work, and no cancellation where Q is near K, as the textbook form with QQᵀ and KKᵀ has. The rows are walked in
chunks, forward and backward, so beyond inputs and gradients there are only D x D matrices and one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import checks
from .derivatives import first_only, no_tangents
from .sweep.flops import count_products

_CHUNK_ENTRIES = 1 << 19  # of P and of M: 2 MiB each in float32, and products of a thousand rows where D is 512


def cyclic_consistency(query: Tensor, key: Tensor, *, cross: float = 1.0, within: float = 1.0) -> Tensor:
    """The mean over all N² entries of ``cross (S_ij - S_ji)² + within (q_i·q_j - k_i·k_j)²``, S = query keyᵀ
    (the two cyclic terms of CyCLIP, Goel et al., 2022).

    Args:
        query: [N, D] and key: [N, D], float32, bfloat16, float16 or float64; row i of one is the pair of row i of the
            other. Normalise them first where cosine similarity is meant.
        cross, within: weights of the two terms, not negative. Where they are equal one product of three is saved.

    Returns:
        float32 scalar (float64 for float64 inputs), differentiable, no unit; 0 is perfect consistency, and the value
        for N = 0.

    Raises:
        ValueError: for shapes, dtypes, devices or weights that do not fit, naming the argument.
    """
    checks.check_pairs(query, key)
    for name, value in (("cross", cross), ("within", within)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: got {value}, want a number that is not negative")
    no_tangents("cyclic_consistency", query, key)
    count_products()
    return _cyclic(query, key, cross, within)[0]


def relational_scores(query: Tensor, key: Tensor) -> Tensor:
    """How consistently each pair sits among the others: ``-mean_j (q_i·q_j - k_i·k_j)²``.

    Args:
        query: [N, D] and key: [N, D], pairs row by row.

    Returns:
        float32 [N] (float64 for float64 inputs), differentiable, no unit; 0 is best.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, naming the argument.
    """
    checks.check_pairs(query, key)
    no_tangents("relational_scores", query, key)
    count_products()
    return _relational(query, key)[0]


@torch.library.custom_op("main_kernels::cyclic_consistency", mutates_args=())
def _cyclic(query: Tensor, key: Tensor, cross: float, within: float) -> list[Tensor]:
    """The mean, then A, B and C for the backward; C is empty where its trace has no weight."""
    with torch.autocast(query.device.type, enabled=False):
        a, b, c = _moments(query, key, mixed=within != cross)
        both = torch.sum(a * b, dtype=torch.float64)  # ⟨A, B⟩
        trace = torch.sum(c * c.T, dtype=torch.float64) if c.numel() else 0.0  # tr(C C)
        mean = 0.5 * ((cross + within) * both + (within - cross) * trace) / max(query.shape[0], 1) ** 2
        return [mean.to(a.dtype), a, b, c]


@_cyclic.register_fake
def _(query: Tensor, key: Tensor, cross: float, within: float) -> list[Tensor]:
    width, wide = query.shape[1], torch.promote_types(query.dtype, torch.float32)
    heights = (width, width, width if within != cross else 0)
    return [query.new_empty((), dtype=wide), *(query.new_empty(n, width, dtype=wide) for n in heights)]


@torch.library.custom_op("main_kernels::cyclic_consistency_gradient", mutates_args=())
def _cyclic_gradient(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    cross: float,
    within: float,
    wants_query: bool,
    wants_key: bool,
) -> list[Tensor]:
    """dQ and dK (empty where not wanted), by dP = 2 k₁ P B + 2 k₂ M Cᵀ and dM = 2 k₁ M A + 2 k₂ P C with
    k₁ = (within + cross) / 2N² and k₂ = (within - cross) / 2N²."""
    with torch.autocast(query.device.type, enabled=False):
        unit = upstream / max(query.shape[0], 1) ** 2
        straight, crossed = unit * (within + cross), unit * (within - cross)
        a, b, c = straight * a, straight * b, crossed * c
        gradients = _empty_gradients(query, key, wants_query, wants_key)
        for rows, plus, minus in _chunks(query, key):
            _write(gradients, rows, _pull(plus, minus, [a, b, c], wants_query, wants_key))
        return gradients


@_cyclic_gradient.register_fake
def _(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    cross: float,
    within: float,
    wants_query: bool,
    wants_key: bool,
) -> list[Tensor]:
    return _empty_gradients(query, key, wants_query, wants_key)


def _cyclic_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, ctx.cross, ctx.within = inputs
    ctx.save_for_backward(query, key, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


@first_only("cyclic_consistency")
def _cyclic_backward(ctx, grads):  # type: ignore[no-untyped-def]
    wants = ctx.needs_input_grad[:2]
    gradients = _cyclic_gradient(grads[0], *ctx.saved_tensors, ctx.cross, ctx.within, *wants)
    return *(g if wanted else None for g, wanted in zip(gradients, wants, strict=True)), None, None


_cyclic.register_autograd(_cyclic_backward, setup_context=_cyclic_setup)


@torch.library.custom_op("main_kernels::relational_scores", mutates_args=())
def _relational(query: Tensor, key: Tensor) -> list[Tensor]:
    """The scores, then A, B and C for the backward."""
    with torch.autocast(query.device.type, enabled=False):
        a, b, c = _moments(query, key)
        scores = a.new_empty(query.shape[0])
        for rows, plus, minus in _chunks(query, key):
            squares = ((plus @ b) * plus).sum(1) + ((minus @ a) * minus).sum(1) + 2 * ((plus @ c) * minus).sum(1)
            scores[rows] = squares / (-4 * query.shape[0])
        return [scores, a, b, c]


@_relational.register_fake
def _(query: Tensor, key: Tensor) -> list[Tensor]:
    width, wide = query.shape[1], torch.promote_types(query.dtype, torch.float32)
    moments = (query.new_empty(width, width, dtype=wide) for _ in range(3))
    return [query.new_empty(query.shape[0], dtype=wide), *moments]


@torch.library.custom_op("main_kernels::relational_scores_gradient", mutates_args=())
def _relational_gradient(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    wants_query: bool,
    wants_key: bool,
) -> list[Tensor]:
    """dQ and dK (empty where not wanted). Every score is its row against the moments of all rows: the upstream weight
    enters once with the row, and once in the moments."""
    with torch.autocast(query.device.type, enabled=False):
        weights = upstream / (-2 * max(query.shape[0], 1))
        own, others = [a, b, c], _moments(query, key, weights=weights)
        gradients = _empty_gradients(query, key, wants_query, wants_key)
        for rows, plus, minus in _chunks(query, key):
            by_row = _pull(plus, minus, own, wants_query, wants_key)
            by_moments = _pull(plus, minus, others, wants_query, wants_key)
            parts = [x.mul_(weights[rows, None]).add_(y) for x, y in zip(by_row, by_moments, strict=True)]
            _write(gradients, rows, parts)
        return gradients


@_relational_gradient.register_fake
def _(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    wants_query: bool,
    wants_key: bool,
) -> list[Tensor]:
    return _empty_gradients(query, key, wants_query, wants_key)


def _relational_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


@first_only("relational_scores")
def _relational_backward(ctx, grads):  # type: ignore[no-untyped-def]
    wants = ctx.needs_input_grad
    gradients = _relational_gradient(grads[0], *ctx.saved_tensors, *wants)
    return tuple(g if wanted else None for g, wanted in zip(gradients, wants, strict=True))


_relational.register_autograd(_relational_backward, setup_context=_relational_setup)


def _chunks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows at a time, with their P [c, D] and M [c, D] in the accumulator dtype."""
    wide = torch.promote_types(query.dtype, torch.float32)
    step = max(_CHUNK_ENTRIES // query.shape[1], 64)
    for begin in range(0, query.shape[0], step):
        rows = slice(begin, min(begin + step, query.shape[0]))
        q, k = query[rows].to(wide), key[rows].to(wide)
        yield rows, q + k, q - k


def _moments(query: Tensor, key: Tensor, *, mixed: bool = True, weights: Tensor | None = None) -> list[Tensor]:
    """A, B and C [D, D] (C [0, D] unless ``mixed``), row i counted weights[i] times."""
    width, wide = query.shape[1], torch.promote_types(query.dtype, torch.float32)
    a, b, c = (query.new_zeros(n, width, dtype=wide) for n in (width, width, width if mixed else 0))
    for rows, plus, minus in _chunks(query, key):
        p, m = (plus, minus) if weights is None else (plus * weights[rows, None], minus * weights[rows, None])
        a.addmm_(p.T, plus)
        b.addmm_(m.T, minus)
        if mixed:
            c.addmm_(m.T, plus)
    return [a, b, c]


def _pull(plus: Tensor, minus: Tensor, moments: list[Tensor], wants_query: bool, wants_key: bool) -> list[Tensor]:
    """P B + M Cᵀ ± (M A + P C), + for the query and - for the key: two products a side that is wanted, two for both
    where C is empty."""
    a, b, c = moments
    signs = [sign for sign, wanted in ((1, wants_query), (-1, wants_key)) if wanted]
    if not c.numel():
        by_plus, by_minus = plus @ b, minus @ a
        return [by_plus + sign * by_minus for sign in signs]
    return [(plus @ (b + sign * c)).addmm_(minus, c.T + sign * a) for sign in signs]


def _empty_gradients(query: Tensor, key: Tensor, wants_query: bool, wants_key: bool) -> list[Tensor]:
    pairs = ((query, wants_query), (key, wants_key))
    return [t.new_empty(t.shape if wanted else (0, t.shape[1])) for t, wanted in pairs]


def _write(gradients: list[Tensor], rows: slice, parts: list[Tensor]) -> None:
    """Fills rows of the gradients that are wanted, from as many parts."""
    for gradient, part in zip((g for g in gradients if g.shape[0]), parts, strict=True):
        gradient[rows] = part
