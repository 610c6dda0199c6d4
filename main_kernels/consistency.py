"""Structural consistency: does every query sit among the queries as its key sits among the keys?

Sums over all N² pairs of pairs, by D x D matrices. With P = Q + K, M = Q - K, A = PᵀP, B = MᵀM, C = MᵀP and S = QKᵀ:

    sum_ij (S_ij - S_ji)²           = ½ (⟨A, B⟩ - tr(C C))      cross-modal
    sum_ij (q_i·q_j - k_i·k_j)²     = ½ (⟨A, B⟩ + tr(C C))      within-modal

O(N D²) work and O(N D + D²) memory, and no cancellation where Q is near K, as the textbook form with QQᵀ and KKᵀ has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks


def cyclic_consistency(query: Tensor, key: Tensor, *, cross: float = 1.0, within: float = 1.0) -> Tensor:
    """The mean over all N² entries of ``cross (S_ij - S_ji)² + within (q_i·q_j - k_i·k_j)²``, S = query keyᵀ
    (the two cyclic terms of CyCLIP, Goel et al., 2022).

    Args:
        query: [N, D] and key: [N, D], float32, bfloat16, float16 or float64; row i of one is the pair of row i of the
            other. Normalise them first where cosine similarity is meant.
        cross, within: weights of the two terms, not negative.

    Returns:
        float32 scalar (float64 for float64 inputs), differentiable, no unit; 0 is perfect consistency.

    Raises:
        ValueError: for shapes, dtypes, devices or weights that do not fit, naming the argument.
    """
    checks.pairs(query, key)
    for name, value in (("cross", cross), ("within", within)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: got {value}, want a number that is not negative")
    with torch.autocast(query.device.type, enabled=False):
        plus, minus = _plus_minus(query, key)
        mixed = minus.T @ plus  # C [D, D]
        both = ((plus.T @ plus) * (minus.T @ minus)).sum()  # ⟨A, B⟩
        trace = (mixed * mixed.T).sum()  # tr(C C)
        return 0.5 * (cross * (both - trace) + within * (both + trace)) / query.shape[0] ** 2


def relational_scores(query: Tensor, key: Tensor) -> Tensor:
    """How consistently each pair sits among the others: ``-mean_j (q_i·q_j - k_i·k_j)²``.

    Args:
        query: [N, D] and key: [N, D], pairs row by row.

    Returns:
        float32 [N] (float64 for float64 inputs), differentiable, no unit; 0 is best.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, naming the argument.
    """
    checks.pairs(query, key)
    with torch.autocast(query.device.type, enabled=False):
        plus, minus = _plus_minus(query, key)
        rows = (
            ((plus @ (minus.T @ minus)) * plus).sum(1)
            + ((minus @ (plus.T @ plus)) * minus).sum(1)
            + 2 * ((plus @ (minus.T @ plus)) * minus).sum(1)
        )
        return -rows / (4 * query.shape[0])


def _plus_minus(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    return query + key, query - key
