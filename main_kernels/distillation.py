"""linear_kl: divergence of two models' next-token distributions, without either's logits.

It walks two score matrices at once; see ``sweep/divergence.py``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import checks
from .amp import autocast
from .backends import select_backend
from .derivatives import no_tangents
from .sweep.divergence import divergence_op
from .sweep.flops import count_products


def linear_kl(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    divergence: Literal["forward", "reverse", "js"] = "forward",
    beta: float = 0.5,
    temperature: float | Tensor = 1.0,
    token_mask: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Divergence of two models' next-token distributions, softmax(hidden weightᵀ / temperature), token by token.

    With t the teacher's and s the student's distribution of a row: ``KL(t || s)`` ("forward"), ``KL(s || t)``
    ("reverse"), or ("js") the generalised Jensen-Shannon divergence of GKD (Agarwal et al., arXiv 2306.13649)
    ``beta KL(t || m) + (1 - beta) KL(s || m)`` with ``m = beta t + (1 - beta) s``. There is no factor temperature².

    T x V is never stored: two chunks of rows are. Masked rows cost nothing. The gradients are ready when the forward
    is; with a frozen teacher both cost four matrix products together, two more where the teacher is trained. Where the
    gradient that arrives differs from row to row (reduction "none"), that of a weight is made again, by three.

    Args:
        student_hidden: [T, Ds] and student_weight: [V, Ds] of one dtype.
        teacher_hidden: [T, Dt] and teacher_weight: [V, Dt] of one dtype, which may be another. Its gradients are made
            only where it requires them.
        divergence, beta: see above; beta, between 0 and 1, is the teacher's share and serves "js" alone.
        temperature: a positive number, or a 0-dimensional tensor, which may require a gradient; divides the logits of
            both. The hidden states are divided by a tensor and rounded to their dtype.
        token_mask: bool [T], True counts. reduction: "mean" is over the rows that count, and 0 where none does.

    Returns:
        float32 (float64 where an input is float64), nats per token: a scalar, or [T] for reduction "none" with 0 at
        masked rows.

    Raises:
        ValueError: for shapes, dtypes, devices or options that do not fit, naming the argument.
    """
    checks.check_matrix("student_hidden", student_hidden, least=0)
    checks.check_matrix("student_weight", student_weight, width=student_hidden.shape[1], like=student_hidden)
    checks.check_matrix("teacher_hidden", teacher_hidden, least=0)
    checks.check_matrix("teacher_weight", teacher_weight, width=teacher_hidden.shape[1])
    if teacher_hidden.device != student_hidden.device:
        raise ValueError(f"teacher_hidden: got device {teacher_hidden.device}, want {student_hidden.device}")
    if teacher_hidden.shape[0] != student_hidden.shape[0]:
        raise ValueError(
            f"teacher_hidden: got {teacher_hidden.shape[0]} rows, want {student_hidden.shape[0]}, one for each of"
            " student_hidden"
        )
    if teacher_weight.shape[0] != student_weight.shape[0]:
        raise ValueError(
            f"teacher_weight: got {teacher_weight.shape[0]} rows, want {student_weight.shape[0]}: one vocabulary"
        )
    checks.check_dtype_and_device("teacher_weight", teacher_weight, teacher_hidden)
    checks.check_choice("divergence", divergence, ("forward", "reverse", "js"))
    if divergence == "js" and not 0 < beta < 1:
        raise ValueError(f"beta: got {beta}, want a number between 0 and 1")
    scale = checks.inverse_temperature(temperature, student_hidden)
    if token_mask is not None:
        checks.check_mask("token_mask", token_mask, student_hidden.shape[0], like=student_hidden)
    checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
    no_tangents("linear_kl", student_hidden, student_weight, teacher_hidden, teacher_weight)
    if isinstance(scale, Tensor):
        student_hidden, teacher_hidden = ((h * scale).to(h.dtype) for h in (student_hidden, teacher_hidden))
        scale = 1.0
    student, teacher = (student_hidden, student_weight), (teacher_hidden, teacher_weight)
    operands = [autocast(t) for t in ((*student, *teacher) if divergence == "reverse" else (*teacher, *student))]
    wider = operands[0] if operands[0].dtype == torch.float64 else operands[2]
    count_products()
    values = divergence_op(
        *operands,
        scale,
        beta if divergence == "js" else None,
        token_mask,
        *(torch.is_grad_enabled() and t.requires_grad for t in operands),
        True,
        select_backend(wider),
    )[0]
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    return values.sum() / (max(values.shape[0], 1) if token_mask is None else token_mask.sum().clamp(min=1))
