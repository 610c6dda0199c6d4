"""The forward op, ``main_kernels::sweep``; ``backward.py`` has its gradient."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from .. import checks
from ..backends.accumulators import Lse, ReductionSpec
from ..backends.workspace import WORKSPACE
from .grad_buffer import Gradient
from .inputs import Inputs, accumulator_dtype, announced_of, make_problem, mode_of, plan_of, schema, selected_rows
from .tiling import Reductions, forward_walk

VECTORS = [f.name for f in fields(Reductions)]
NAMES = [*VECTORS, "row_low", "column_low"]
"""Outputs of the op: these, of which the last are the lower parts of both log-sum-exps, then what is held for the
backward: the kept scores, (high, low) of both gradients."""
SUMS = ("row_logits", "column_logits")  # float64, because an objective takes differences of them


def _held(inputs: Inputs) -> list[Tensor]:
    """Empty buffers of the right shapes: kept, d_query.high, d_query.low, d_key.high, d_key.low."""
    query, key, plan, mode = inputs.query, inputs.key, plan_of(inputs), mode_of(inputs)
    rows, columns = query.shape[0], key.shape[0]
    d_query = Gradient.empty(query, None if mode == "forward" and inputs.grad_query else 0)
    d_key = Gradient.empty(key, None if mode == "forward" and inputs.grad_key else 0)
    kept = WORKSPACE.acquire((rows if mode == "kept" else 0, columns), plan.compute, query.device)
    return [kept, d_query.high, d_query.low, d_key.high, d_key.low]


def _check_targets(inputs: Inputs) -> None:
    targets, columns = inputs.targets, inputs.key.shape[0]
    if targets is None:
        return
    wrong = (targets >= columns) | (targets < 0)
    wanted = f"want an id from 0 to {columns - 1}"
    if inputs.ignore_index is not None:
        wrong &= targets != inputs.ignore_index
        wanted += f", or {inputs.ignore_index}, which is ignored"
    if not checks.assert_on_device(~wrong.any(), f"targets: {wanted}") and bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"targets: row {row} has {int(targets[row])}, {wanted}")
    if inputs.statistics and inputs.columns:
        order = targets.argsort(stable=True)
        twice = targets[order].diff() == 0
        if inputs.ignore_index is not None:
            twice &= targets[order][1:] != inputs.ignore_index
        wanted = "want a column of its own for each row"
        if not checks.assert_on_device(~twice.any(), f"targets: {wanted}") and bool(twice.any()):
            first, second = (int(order[int(twice.nonzero()[0, 0]) + i]) for i in (0, 1))
            raise ValueError(
                f"targets: rows {first} and {second} both have {int(targets[first])}, {wanted}: "
                "pass key[targets] as the keys instead"
            )


@torch.library.custom_op("main_kernels::sweep", mutates_args=(), schema=schema(Inputs, "Tensor[]"))
def sweep_op(*arguments) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """Inputs -> the vectors of Reductions (length 0 where not asked for), the lower parts of both log-sum-exps, then
    the held state. Rows whose target is ignored take no part at all: their outputs and gradients are 0."""
    inputs = Inputs(*arguments)
    query = inputs.query
    with torch.autocast(query.device.type, enabled=False):
        _check_targets(inputs)
        accumulator = accumulator_dtype(query.dtype)
        held = _held(inputs)
        selected = selected_rows(inputs)
        problem, announced = make_problem(inputs, selected), announced_of(inputs) if inputs.announced else None
        d_query = Gradient(held[1], held[2])
        if selected is not None:
            announced = None if announced is None else announced.of_rows(selected)
            held[0][selected.shape[0] :].zero_()  # the scores of the selected rows come first, and there are no others
            if d_query.wanted:
                d_query = Gradient.empty(query, selected.shape[0])
        out = forward_walk(
            problem,
            ReductionSpec(**{f.name: getattr(inputs, f.name) for f in fields(ReductionSpec)}),
            accumulator=accumulator,
            announced=announced,
            kept=held[0],
            d_query=d_query,
            d_key=Gradient(held[3], held[4]),
        )
        if selected is not None:
            _scatter_rows(out, selected, query.shape[0])
            if held[1].shape[0]:
                Gradient(held[1], held[2]).zero_()
                held[1][selected], held[2][selected[: d_query.low.shape[0]]] = d_query.high, d_query.low
        row, column = out.row_lse, out.column_lse
        vectors = [getattr(out, name) for name in VECTORS]
        highs = [v.high if isinstance(v, Lse) else v for v in vectors]
        lows = [None if lse is None else lse.low for lse in (row, column)]
        absent = {name: query.new_empty(0, dtype=torch.float64 if name in SUMS else accumulator) for name in NAMES}
        given = zip(NAMES, (*highs, *lows), strict=True)
        return [absent[name] if v is None else v for name, v in given] + held


def _scatter_rows(out: Reductions, selected: Tensor, count: int) -> None:
    """Back to all ``count`` rows, zero where a row took no part."""

    def full(vector: Tensor) -> Tensor:
        return vector.new_zeros(count).index_copy_(0, selected, vector)

    for name in VECTORS:
        vector = getattr(out, name)
        if name.startswith("column") or vector is None:
            continue
        setattr(out, name, Lse(full(vector.high), full(vector.low)) if isinstance(vector, Lse) else full(vector))


@sweep_op.register_fake
def _sweep_fake(*arguments):  # type: ignore[no-untyped-def]
    inputs = Inputs(*arguments)
    rows, columns = inputs.query.shape[0], inputs.key.shape[0]
    statistics, targets = inputs.statistics, inputs.targets is not None
    wanted = {
        "row_lse": inputs.row_lse,
        "column_lse": inputs.columns,
        "target": targets,
        "row_logits": inputs.logit_sums,
        "column_logits": inputs.logit_sums and inputs.columns,
        "softplus": inputs.softplus,
        "loss": inputs.announced,
        "entropy": statistics,
        "unweighted": inputs.announced and inputs.weights is not None,
        "clipped": inputs.clip > 0,
        "row_rank": statistics and targets,
        "column_rank": statistics and targets and inputs.columns,
    }
    wanted |= {"row_low": inputs.row_lse, "column_low": inputs.columns}
    accumulator = accumulator_dtype(inputs.query.dtype)

    def vector(name: str) -> Tensor:
        length = 0 if not wanted[name] else columns if name.startswith("column") else rows
        return inputs.query.new_empty(length, dtype=torch.float64 if name in SUMS else accumulator)

    return [vector(name) for name in NAMES] + _held(inputs)
