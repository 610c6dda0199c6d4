"""rms_norm, silu_mul, rotary: a LLaMA layer between its products, forward and backward, on the CPU.

Each is one pass over the states, where torch makes up to eight. They round where transformers does; a gradient is
rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import cpu

_TYPES = (Tensor, torch.nn.Parameter)
"""types whose memory is their own: that of a subclass, such as a DTensor, may be elsewhere"""


def fits(*tensors: Tensor) -> bool:
    """Return True if these functions take the tensors: contiguous and of one dtype, float32 or bfloat16, on the CPU;
    and the C++ kernels are built, and torch.compile, which fuses these passes itself, is not tracing.

    Args:
        tensors: one or more of any shape.
    """
    if cpu.MODULE is None or torch.compiler.is_compiling():
        return False
    dtype = tensors[0].dtype
    return dtype in (torch.float32, torch.bfloat16) and all(
        type(tensor) in _TYPES and tensor.dtype == dtype and tensor.device.type == "cpu" and tensor.is_contiguous()
        for tensor in tensors
    )


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return weight * x / sqrt(mean(x²) + epsilon), the mean over the last dimension (Zhang and Sennrich 2019).

    Args:
        x: [..., D], float32 or bfloat16, which ``fits``. The mean and the quotient are float32. Differentiable.
        weight: [D], of the same dtype. Differentiable.
        epsilon: added to the mean of the squares.

    Raises:
        ValueError: ``weight`` has another shape, or a tensor does not fit.
    """
    width = x.shape[-1]
    if weight.shape != (width,):
        raise ValueError(f"weight: expected shape [{width}], got {list(weight.shape)}")
    return _RmsNorm.apply(x, weight, epsilon)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up; silu(s) = s / (1 + e^-s) (Shazeer 2020, SwiGLU).

    Args:
        gate: [..., F], float32 or bfloat16, which ``fits``. Differentiable.
        up: the same shape and dtype. Differentiable.

    Raises:
        ValueError: the shapes differ, or a tensor does not fit.
    """
    if gate.shape != up.shape:
        raise ValueError(f"up: expected shape {list(gate.shape)}, got {list(up.shape)}")
    return _SiluMul.apply(gate, up)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x cos + rotate_half(x) sin (Su et al. 2021, with the halves of a head as pairs) as [1, H, T, d].

    Args:
        x: [1, T, H, d], float32 or bfloat16, which ``fits``; d is even. Differentiable.
        cos: [1, T, d], cosines of the positions, of the same dtype, or float32, as under autocast.
        sin: [1, T, d], their sines.

    Raises:
        ValueError: the shapes do not match, or a tensor does not fit.
    """
    batch, rows, _, width = x.shape
    if cos.dtype not in (x.dtype, torch.float32) or sin.dtype != cos.dtype:
        raise ValueError(f"cos, sin: expected dtype {x.dtype} or torch.float32, got {cos.dtype} and {sin.dtype}")
    for name, angles in (("cos", cos), ("sin", sin)):
        if batch != 1 or width % 2 or angles.shape != (1, rows, width):
            raise ValueError(
                f"{name}: expected shape [1, T, d] for x [1, T, H, d] with an even d, got {list(angles.shape)} for"
                f" {list(x.shape)}"
            )
    return _Rotary.apply(x, cos, sin)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        out = torch.empty_like(x)
        cpu.rms_norm(x, weight, epsilon, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        weight_grad = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        out_grad = out_grad.contiguous()
        cpu.rms_norm_grad(x, weight, ctx.epsilon, out_grad=out_grad, x_grad=x_grad, weight_grad=weight_grad)
        return x_grad, weight_grad, None


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        cpu.silu_mul(gate, up, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gate_grad, up_grad = torch.empty_like(gate), torch.empty_like(up)
        cpu.silu_mul_grad(gate, up, out_grad=out_grad.contiguous(), gate_grad=gate_grad, up_grad=up_grad)
        return gate_grad, up_grad


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        _, rows, heads, width = x.shape
        out = x.new_empty((1, heads, rows, width))
        cpu.rotate(x, cos, sin, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        _, heads, rows, width = out_grad.shape
        x_grad = out_grad.new_empty((1, rows, heads, width))
        cpu.rotate_grad(cos, sin, out_grad=out_grad.contiguous(), x_grad=x_grad)
        return x_grad, None, None
