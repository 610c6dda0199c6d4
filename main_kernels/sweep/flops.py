"""count_products: the matrix products of the ops, for torch.utils.flop_counter.FlopCounterMode.

The counter is not imported here, as it imports Triton: formulas are handed to it where somebody else has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .. import checks
from .inputs import GradientInputs, Inputs, mode_of, one_number, scored


def count_products() -> None:
    """Register the formulas with the counter, if it is in use, and with counters that are already running."""
    if torch.compiler.is_compiling():
        return
    counter = sys.modules.get("torch.utils.flop_counter")
    if counter is None:
        return
    running = [getattr(mode, "counter", mode) for mode in _get_current_dispatch_mode_stack()]
    registries = [counter.flop_registry, *(getattr(mode, "flop_registry", {}) for mode in running)]
    for registry in registries:
        for name, formula in _FORMULAS.items():
            registry[getattr(torch.ops.main_kernels, name)] = formula


def _count(mask: Tensor | None, rows: int) -> int:
    """How many of the rows take part; all, where that cannot be read."""
    return rows if mask is None or not checks.has_readable_values(mask) else int(mask.sum())


def _equal(vector: Tensor) -> bool:
    return one_number(vector) or not checks.has_readable_values(vector) or bool((vector == vector[:1]).all())


def _product(inputs: Inputs | GradientInputs) -> int:
    """Flops of one product of the size of the scores."""
    return 2 * _count(scored(inputs), inputs.query.shape[0]) * inputs.key.shape[0] * inputs.query.shape[1]


def _sweep(*arguments, **_) -> int:  # type: ignore[no-untyped-def]
    inputs = Inputs(*arguments)
    gradients = inputs.grad_query + inputs.grad_key if mode_of(inputs) == "forward" else 0
    return _product(inputs) * (1 + gradients)


def _sweep_gradient(*arguments, **_) -> int:  # type: ignore[no-untyped-def]
    inputs = GradientInputs(*arguments)
    by_query, by_key = bool(inputs.d_query.shape[0]), bool(inputs.d_key.shape[0])
    product = _product(inputs)
    others = (inputs.d_row, inputs.d_target, inputs.d_row_logits, inputs.d_softplus, inputs.d_entropy)
    factor = inputs.d_loss
    if inputs.gradient == "kept" and inputs.kept.numel():
        return product * (by_query + by_key)
    if inputs.gradient != "forward" or factor is None or any(d is not None for d in others):
        return product * (1 + by_query + by_key)
    mask = scored(inputs)
    if mask is not None and checks.has_readable_values(mask):
        factor = factor[mask]
    uniform = not by_key or inputs.uniform or _equal(factor)
    again = 0 if inputs.ready else 1 + by_query + (by_key and uniform)
    return product * (again + (0 if uniform else 2))


def _divergence_walk(rows: int, operands: tuple[Tensor, ...], hiddens: list[bool], weights: list[bool]) -> int:
    """Flops of one walk: both scores, then what is wanted of (p's, q's) hidden states and weights."""
    columns, widths = operands[1].shape[0], [operands[0].shape[1], operands[2].shape[1]]
    products = sum(width * (1 + h + w) for width, h, w in zip(widths, hiddens, weights, strict=True))
    return 2 * rows * columns * products


def _divergence(*arguments, **_) -> int:  # type: ignore[no-untyped-def]
    *operands, _scale, _beta, mask, p_hidden, p_weight, q_hidden, q_weight, _donate, _backend = arguments
    rows = _count(mask, operands[0].shape[0])
    return _divergence_walk(rows, tuple(operands), [p_hidden, q_hidden], [p_weight, q_weight])


def _divergence_gradient(*arguments, **_) -> int:  # type: ignore[no-untyped-def]
    upstream, *operands, _scale, _beta, mask = arguments[:8]
    *planes, uniform, ready, _backend = arguments[8:]
    p_hidden, p_weight, q_hidden, q_weight = (plane.shape[0] > 0 for plane in planes[::2])
    hiddens, weights, none = [p_hidden, q_hidden], [p_weight, q_weight], [False, False]
    taking_part = upstream if mask is None or not checks.has_readable_values(mask) else upstream[mask]
    uniform = uniform or not any(weights) or _equal(taking_part)
    walks = []
    if not ready:
        walks.append((hiddens, weights if uniform else none))
    if not uniform:
        walks.append((none, weights))
    rows = _count(mask, operands[0].shape[0])
    return sum(_divergence_walk(rows, tuple(operands), h, w) for h, w in walks if any(h + w))


def _moments(query: Tensor, products: int) -> int:
    return 2 * products * query.shape[0] * query.shape[1] ** 2


def _cyclic(query: Tensor, key: Tensor, cross: float, within: float, **_) -> int:  # type: ignore[no-untyped-def]
    return _moments(query, 2 if cross == within else 3)


def _cyclic_gradient(  # type: ignore[no-untyped-def]
    upstream, query, key, a, b, c, cross, within, wants_query, wants_key, **_
) -> int:
    return _moments(query, 2 * (wants_query + wants_key) if c.numel() else 2)


def _relational(query: Tensor, key: Tensor, **_) -> int:  # type: ignore[no-untyped-def]
    return _moments(query, 6)


def _relational_gradient(upstream, query, key, a, b, c, wants_query, wants_key, **_) -> int:  # type: ignore[no-untyped-def]
    return _moments(query, 3 + 4 * (wants_query + wants_key))


_FORMULAS: dict[str, Callable[..., int]] = {
    "sweep": _sweep,
    "sweep_gradient_": _sweep_gradient,
    "divergence": _divergence,
    "divergence_gradient_": _divergence_gradient,
    "cyclic_consistency": _cyclic,
    "cyclic_consistency_gradient": _cyclic_gradient,
    "relational_scores": _relational,
    "relational_scores_gradient": _relational_gradient,
}
