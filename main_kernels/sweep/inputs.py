"""What the sweep's two ops are called with, and how that becomes the Problem that is walked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import ScoreMap, get_backend
from ..backends.interface import Mask
from .plan import GradientMode, Plan, gradient_mode, make_plan
from .tiling import Announced, Problem

Changed = Tensor  # an argument that the op writes to


class Inputs(NamedTuple):
    """Arguments of ``main_kernels::sweep``."""

    query: Tensor  # [N, D]
    key: Tensor  # [M, D]
    scale: Tensor  # 0-dimensional
    bias: Tensor | None  # [M]
    softcap: float
    targets: Tensor | None  # [N] int64
    ignore_index: int | None  # a row with this target takes no part; None: all do, and nobody need look
    row_ids: Tensor | None  # [N] int64
    column_ids: Tensor | None  # int64, at most M; the columns beyond have an id of their own
    keep_target: bool
    row_lse: bool  # from here to clip: ReductionSpec
    columns: bool
    statistics: bool
    logit_sums: bool
    softplus: bool
    clip: float
    announced: bool  # whether the loss of the next three is wanted
    weights: Tensor | None  # [N]
    label_smoothing: float
    z_loss: float
    grad_query: bool
    grad_key: bool
    grad_other: bool  # scale or bias needs a gradient
    workspace_bytes: int
    donate: bool  # the caller drops the held state, so the backward may use it up in place
    backend: str


class GradientInputs(NamedTuple):
    """Arguments of ``main_kernels::sweep_gradient_``; those of the sweep mean the same."""

    query: Tensor
    key: Tensor
    scale: Tensor
    bias: Tensor | None
    softcap: float
    targets: Tensor | None
    ignore_index: int | None
    row_ids: Tensor | None
    column_ids: Tensor | None
    keep_target: bool
    weights: Tensor | None
    label_smoothing: float
    z_loss: float
    row_lse: Tensor
    row_low: Tensor
    column_lse: Tensor
    column_low: Tensor
    entropy: Tensor
    d_row: Tensor | None  # upstream gradients of the differentiable outputs; None is zero
    d_column: Tensor | None
    d_target: Tensor | None
    d_row_logits: Tensor | None
    d_column_logits: Tensor | None
    d_softplus: Tensor | None
    d_loss: Tensor | None
    d_entropy: Tensor | None
    uniform: bool  # d_loss is known to be one number
    kept: Changed  # raw scores, used up; empty where not kept
    d_query: Changed  # the gradient buffers, empty where not wanted
    d_query_low: Changed
    d_key: Changed
    d_key_low: Changed
    d_bias: Changed
    d_scale: Changed
    gradient: str  # where the forward's plan makes the gradients
    ready: bool  # its work is at hand; otherwise it is done again, in the same order, to the same bits
    backend: str


_KINDS = {"Tensor | None": "Tensor?", "int | None": "int?"}


def schema(arguments: type, returns: str) -> str:
    """The op's schema, from the names and annotations of its arguments."""

    def kind(name: str, annotation: str) -> str:
        return f"Tensor({name}!)" if annotation == "Changed" else _KINDS.get(annotation, annotation)

    listed = ((name, getattr(a, "__forward_arg__", a)) for name, a in arguments.__annotations__.items())
    return f"({', '.join(f'{kind(name, str(a))} {name}' for name, a in listed)}) -> {returns}"


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def plan_of(inputs: Inputs | GradientInputs) -> Plan:
    query, key = inputs.query, inputs.key
    return make_plan(query.shape[0], key.shape[0], query.shape[1], query.dtype, query.device.type)


def mode_of(inputs: Inputs) -> GradientMode:
    """Where the gradients of this sweep are made."""
    if not (inputs.grad_query or inputs.grad_key or inputs.grad_other):
        return "none"
    # the gradients of scale and bias are sums over everything, not one factor a row
    announced = inputs.announced and not inputs.columns and not inputs.grad_other
    rows, columns = inputs.query.shape[0], inputs.key.shape[0]
    return gradient_mode(plan_of(inputs), rows, columns, announced=announced, workspace_bytes=inputs.workspace_bytes)


def mask_of(inputs: Inputs | GradientInputs) -> Mask | None:
    """The mask in 32 bits."""
    rows, columns, count = inputs.row_ids, inputs.column_ids, inputs.key.shape[0]
    if rows is None or columns is None:
        if inputs.keep_target or inputs.targets is None:
            return None
        every = torch.arange(count, dtype=torch.int32, device=inputs.query.device)
        return Mask(inputs.targets.to(torch.int32), every, False)
    numbers, nobody = _narrow(torch.cat([rows, columns]))
    mine = numbers.new_full((count,), nobody)
    mine[: columns.shape[0]] = numbers[rows.shape[0] :]
    return Mask(numbers[: rows.shape[0]], mine, inputs.keep_target)


def _narrow(ids: Tensor) -> tuple[Tensor, int]:
    """int64 ids in 32 bits, equal where they were equal, and a number that none of them has."""
    if ids.device.type == "cuda":  # each its first place in order: the host learns nothing
        return torch.searchsorted(ids.sort()[0], ids).to(torch.int32), -1
    limits = torch.iinfo(torch.int32)
    if not ids.numel():
        return ids.to(torch.int32), limits.min
    low, high = ids.aminmax()
    if int(low) > limits.min and int(high) <= limits.max:
        return ids.to(torch.int32), limits.min
    return ids.unique(return_inverse=True)[1].to(torch.int32), -1  # numbered anew


def make_problem(inputs: Inputs | GradientInputs, selected: Tensor | None) -> Problem:
    """The problem of the ``selected`` rows (None: of all)."""
    plan, mask = plan_of(inputs), mask_of(inputs)
    query, targets = inputs.query, inputs.targets
    if selected is not None and targets is not None:
        query, targets = query[selected], targets[selected]
        mask = None if mask is None else Mask(mask.rows[selected], mask.columns, mask.keep_target)
    bias = inputs.bias
    if bias is not None:
        bias = bias.to(accumulator_dtype(query.dtype)).contiguous()
    backend = get_backend(inputs.backend)
    fused = backend.fused if backend.fused is not None and backend.fused.supports(query.dtype) else None
    mode = mode_of(inputs) if isinstance(inputs, Inputs) else inputs.gradient
    return Problem(
        query=query,
        key=inputs.key,
        score_map=ScoreMap(inputs.scale.detach(), inputs.softcap, bias),
        targets=None if targets is None else targets.contiguous(),
        mask=mask,
        plan=plan,
        backend=backend,
        fused=fused,
        stored=plan.compute if mode in ("kept", "forward") else None,
    )


def announced_of(inputs: Inputs | GradientInputs) -> Announced:
    return Announced(inputs.weights, inputs.label_smoothing, inputs.z_loss)


def accumulating(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A vector beside operands of a dtype, as the walks read it."""
    return None if vector is None else vector.detach().to(accumulator_dtype(dtype)).contiguous()


def one_number(vector: Tensor) -> bool:
    """Whether all entries are known to be one number, without a look at them: that of a sum arrives expanded."""
    return vector.shape[0] == 1 or (vector.shape[0] > 0 and vector.stride(0) == 0)


def scored(inputs: Inputs | GradientInputs) -> Tensor | None:
    """bool [N], which rows take part; None where all are known to."""
    if inputs.targets is None or inputs.ignore_index is None:
        return None
    return inputs.targets != inputs.ignore_index


def selected_rows(inputs: Inputs | GradientInputs) -> Tensor | None:
    """Indices of the rows that take part, or None when all do."""
    mask = scored(inputs)
    return None if mask is None else taking_part(mask)


def taking_part(mask: Tensor) -> Tensor | None:
    """Where mask[N] is True; None: everywhere. The host waits for the device here: rows that are not multiplied are
    worth more than that."""
    if mask.device.type != "cuda":
        return None if bool(mask.all()) else mask.nonzero()[:, 0]
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "rows may be left out here, and how many is not known while a CUDA graph is captured: select the rows that "
            "count beforehand, then pass ignore_index=None or no mask"
        )
    selected = mask.nonzero()[:, 0]
    return None if selected.shape[0] == mask.shape[0] else selected
