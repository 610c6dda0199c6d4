"""linear_kl: the divergence of two models' next-token distributions, without the logits of either."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import checks
from .amp import cast_operand
from .backends import select_backend
from .derivatives import no_transforms
from .sweep.divergence import divergence_op
from .sweep.signatures import DivergenceArgs


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
    """Compute a divergence of teacher and student, token by token.

    Let t be the teacher's and s the student's distribution of a token, softmax(hidden weightᵀ / temperature):

    | divergence | formula |
    |---|---|
    | ``"forward"`` | KL(t ‖ s) |
    | ``"reverse"`` | KL(s ‖ t) |
    | ``"js"`` | beta KL(t ‖ m) + (1 - beta) KL(s ‖ m) with m = beta t + (1 - beta) s |

    ``"js"`` is the generalised Jensen-Shannon divergence of GKD (Agarwal et al., arXiv 2306.13649).

    The result is not multiplied by temperature². [T, V] is never stored, only two chunks of rows. The forward also
    computes the gradients. With a frozen teacher, forward and backward cost four matrix products together, with a
    trained one six. If the upstream gradient differs from row to row (reduction "none"), the gradient of a weight is
    recomputed, at three products. Masked rows cost nothing.

    Args:
        student_hidden: [T, Ds], float32, bfloat16, float16 or float64. T may be 0.
        student_weight: [V, Ds], dtype of student_hidden (any dtype under autocast).
        teacher_hidden: [T, Dt], may have another dtype. Its gradient is computed only if it requires one.
        teacher_weight: [V, Dt], dtype of teacher_hidden, the same vocabulary. Its gradient likewise.
        divergence: see above.
        beta: between 0 and 1. The teacher's weight in the mixture. Only used by "js".
        temperature: positive number, or 0-dimensional tensor, which may require a gradient. Divides the logits of both
            models. With a tensor, the hidden states are divided and rounded to their dtype.
        token_mask: bool [T], True for tokens that count. None: all tokens count.
        reduction: "mean" over the tokens that count (0 if there are none), "sum", or "none".

    Returns:
        float32 (float64 if an input is float64), nats per token: a scalar, or [T] for reduction "none", with 0 at
        masked tokens.

    Raises:
        ValueError: a shape, dtype, device or option is invalid. The message names the argument.
        RuntimeError: token_mask is given while a CUDA graph is captured, or the gradient is differentiated again.

    Example:
        >>> loss = linear_kl(student_hidden, student_head, teacher_hidden, teacher_head, divergence="js", beta=0.5)
    """
    checks.check_matrix("student_hidden", student_hidden, least=0)
    checks.check_matrix("student_weight", student_weight, width=student_hidden.shape[1], like=student_hidden)
    checks.check_matrix("teacher_hidden", teacher_hidden, least=0)
    checks.check_matrix("teacher_weight", teacher_weight, width=teacher_hidden.shape[1])
    if teacher_hidden.device != student_hidden.device:
        raise ValueError(f"teacher_hidden: expected {student_hidden.device}, got device {teacher_hidden.device}")
    if teacher_hidden.shape[0] != student_hidden.shape[0]:
        raise ValueError(
            f"teacher_hidden: expected {student_hidden.shape[0]} rows, one for each of student_hidden, got"
            f" {teacher_hidden.shape[0]} rows"
        )
    if teacher_weight.shape[0] != student_weight.shape[0]:
        raise ValueError(
            f"teacher_weight: expected {student_weight.shape[0]} rows, the student's vocabulary, got"
            f" {teacher_weight.shape[0]} rows"
        )
    checks.check_dtype_and_device("teacher_weight", teacher_weight, teacher_hidden)
    checks.check_choice("divergence", divergence, ("forward", "reverse", "js"))
    if divergence == "js":
        checks.check_positive("beta", beta)
        if beta >= 1:
            raise ValueError(f"beta: expected a number between 0 and 1, got {beta}")
    scale = checks.inverse_temperature(temperature, student_hidden)
    if token_mask is not None:
        checks.check_mask("token_mask", token_mask, student_hidden.shape[0], like=student_hidden)
    checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
    no_transforms("linear_kl", student_hidden, student_weight, teacher_hidden, teacher_weight, scale)
    if isinstance(scale, Tensor):
        student_hidden, teacher_hidden = ((h * scale).to(h.dtype) for h in (student_hidden, teacher_hidden))
        scale = 1.0
    student, teacher = (student_hidden, student_weight), (teacher_hidden, teacher_weight)
    operands = (*student, *teacher) if divergence == "reverse" else (*teacher, *student)
    grads = [torch.is_grad_enabled() and operand.requires_grad for operand in operands]
    (p_hidden, p_weight, q_hidden, q_weight), sources = zip(*map(cast_operand, operands), strict=True)
    args = DivergenceArgs(
        p_hidden=p_hidden,
        p_weight=p_weight,
        q_hidden=q_hidden,
        q_weight=q_weight,
        p_hidden_source=sources[0],
        p_weight_source=sources[1],
        q_hidden_source=sources[2],
        q_weight_source=sources[3],
        scale=scale,
        beta=beta if divergence == "js" else None,
        mask=token_mask,
        grad_p_hidden=grads[0],
        grad_p_weight=grads[1],
        grad_q_hidden=grads[2],
        grad_q_weight=grads[3],
        reuse_saved=True,
        backend=select_backend(p_hidden if p_hidden.dtype == torch.float64 else q_hidden),
    )
    values = divergence_op(args).values
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    return values.sum() / (max(values.shape[0], 1) if token_mask is None else token_mask.sum().clamp(min=1))
