"""gradient_power, loss_power, divergence_power, over_power: the power of two that multiplies a float16 score gradient.

float16 has no numbers below 6e-8 or above 65504, and the gradient of a score may be far outside. Its coefficients are
multiplied by a power of two that takes a bound on all entries to 16384. The gradients of the operands, which are
float32 sums, are divided by it. Entries down to 2^-28 of the bound then keep all their digits. Both steps are exact,
and the host never reads the power.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..backends.structs import ScoreGradTerms
from .problem import Problem
from .row_loss import RowLoss

_LARGEST = 2.0**14


def gradient_power(problem: Problem, terms: ScoreGradTerms) -> Tensor | None:
    """Return the power [1] for coefficients of the scores' gradient; None if the gradient is not float16."""
    if problem.plan.compute != torch.float16:
        return None
    # every factor of a coefficient is at most 1: exp(s - lse), its product with s - lse, sigmoid
    bounds = [_largest(coefficient) for coefficient in terms.coefficients() if coefficient is not None]
    return _power(problem, torch.stack(bounds).sum() if bounds else problem.score_map.scale.new_ones(()))


def loss_power(problem: Problem, loss: RowLoss) -> Tensor | None:
    """Return the power for the gradient of the row losses, the same for all chunks and in both passes."""
    if problem.plan.compute != torch.float16:
        return None
    weight = problem.score_map.scale.new_ones(()) if loss.weights is None else _largest(loss.weights)
    bound: Tensor | float = 3.0  # the softmax, the target and the smoothing
    if loss.z_loss:
        bound = 3.0 + 2 * abs(loss.z_loss) * _largest_lse(problem)
    return _power(problem, weight * bound)


def divergence_power(row_grads: Tensor, scale: float, q_operands: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the power for the gradients of both score matrices of a divergence.

    Args:
        row_grads: [T], the rows' upstream gradients.
        scale: factor of both matrices.
        q_operands: hidden states [T, D] and weight [V, D] of q if p of KL(p || q) is trained. An entry of its gradient
            is p (log(p / q) - KL), which grows with the scores of q. Else no entry exceeds 3/2.
    """
    bound: Tensor | float = 1.5
    if q_operands is not None:
        bound = 0.5 + 4 * abs(scale) * _largest_product(*q_operands) + 2 * math.log(q_operands[1].shape[0])
    return _power_of(_largest(row_grads) * bound * scale)


def over_power(factor: Tensor | None, power: Tensor | None) -> Tensor | None:
    """Return factor / power; None is 1."""
    if power is None:
        return factor
    return power.reciprocal() if factor is None else factor / power


def _power(problem: Problem, bound: Tensor) -> Tensor:
    return _power_of(bound * problem.score_map.scale)


def _power_of(bound: Tensor) -> Tensor:
    bound = bound.abs().float()
    exponent = (_LARGEST / bound).log2().floor().clamp(-120, 120)  # NaN and 0 / 0 become 1
    return exponent.nan_to_num(0).exp2().reshape(1)


def _largest(vector: Tensor) -> Tensor:
    """Return the largest finite magnitude."""
    if not vector.numel():
        return vector.new_zeros((), dtype=torch.float32)
    return vector.float().nan_to_num(0, 0, 0).abs().amax()


def _largest_product(query: Tensor, key: Tensor) -> Tensor:
    """Return a bound on the magnitude of every q·k."""
    query_norm, key_norm = (_largest(torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)) for x in (query, key))
    return query_norm * key_norm


def _largest_lse(problem: Problem) -> Tensor:
    """Return a bound on the magnitude of every row's log-sum-exp."""
    score_map, columns = problem.score_map, problem.key.shape[0]
    if score_map.softcap:
        bound = score_map.scale.new_full((), score_map.softcap)
    else:
        bound = _largest_product(problem.query, problem.key)
        if score_map.bias is not None:
            bound = bound + _largest(score_map.bias)
    return (bound * score_map.scale).abs() + math.log(max(columns, 1))
