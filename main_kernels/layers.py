"""rms_norm, silu_mul_, rotary: a LLaMA layer between its products, on the CPU and without gradients.

Each is one pass over the states, where torch makes up to eight. They round where transformers does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import cpu


def fits(*tensors: Tensor) -> bool:
    """Return True if these functions take the tensors: contiguous and of one dtype, float32 or bfloat16, on the CPU;
    and no gradient is recorded, and the C++ kernels are built.

    Args:
        tensors: one or more of any shape.
    """
    if cpu.MODULE is None or torch.is_grad_enabled():
        return False
    dtype = tensors[0].dtype
    return dtype in (torch.float32, torch.bfloat16) and all(
        tensor.dtype == dtype and tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors
    )


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return weight * x / sqrt(mean(x²) + epsilon), the mean over the last dimension (Zhang and Sennrich 2019).

    Args:
        x: [..., D], float32 or bfloat16, which ``fits``. The mean and the quotient are float32.
        weight: [D], of the same dtype.
        epsilon: added to the mean of the squares.

    Raises:
        ValueError: ``weight`` has another shape, or a tensor does not fit.
    """
    width = x.shape[-1]
    if weight.shape != (width,):
        raise ValueError(f"weight: expected shape [{width}], got {list(weight.shape)}")
    out = torch.empty_like(x)
    cpu.rms_norm(x, weight, epsilon, out)
    return out


def silu_mul_(gate: Tensor, up: Tensor) -> Tensor:
    """Replace ``gate`` by silu(gate) * up and return it; silu(s) = s / (1 + e^-s) (Shazeer 2020, SwiGLU).

    Args:
        gate: [..., F], float32 or bfloat16, which ``fits``.
        up: the same shape and dtype.

    Raises:
        ValueError: the shapes differ, or a tensor does not fit.
    """
    if gate.shape != up.shape:
        raise ValueError(f"up: expected shape {list(gate.shape)}, got {list(up.shape)}")
    cpu.silu_mul_(gate, up)
    return gate


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x cos + rotate_half(x) sin (Su et al. 2021, with the halves of a head as pairs) as [1, H, T, d].

    Args:
        x: [1, T, H, d], float32 or bfloat16, which ``fits``; d is even.
        cos: [1, T, d], cosines of the positions, of the same dtype.
        sin: [1, T, d], their sines.

    Raises:
        ValueError: the shapes do not match, or a tensor does not fit.
    """
    batch, rows, heads, width = x.shape
    for name, angles in (("cos", cos), ("sin", sin)):
        if batch != 1 or width % 2 or angles.shape != (1, rows, width):
            raise ValueError(
                f"{name}: expected shape [1, T, d] for x [1, T, H, d] with an even d, got {list(angles.shape)} for"
                f" {list(x.shape)}"
            )
    out = x.new_empty((1, heads, rows, width))
    cpu.rotate(x, cos, sin, out)
    return out
