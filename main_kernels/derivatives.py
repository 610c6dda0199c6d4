"""first_only, no_transforms: errors for derivatives that an op does not have, instead of wrong numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _FirstOnly(torch.autograd.Function):
    """Return gradients unchanged, attached to every tensor they depend on. Differentiating them is an error."""

    @staticmethod
    def forward(ctx: Any, op: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.op}: its gradient was differentiated again (create_graph=True), and it has no second derivatives; "
            "detach the gradient, or compute this term by ordinary torch operations"
        )


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    """Return all tensors among the arguments, including those in lists."""
    flat = [x for a in arguments for x in (a if isinstance(a, (list, tuple)) else [a])]
    return [t for t in flat if isinstance(t, Tensor)]


def first_only(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate the backward of ``op`` so that differentiating its gradients raises RuntimeError.

    Without it, second-order terms would be dropped silently: autograd does not see the kernels that compute gradients.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Any) -> Any:
            if not torch.is_grad_enabled():
                return backward(ctx, *grads)
            sources = [t for t in (*_tensors(ctx.saved_tensors), *_tensors(grads)) if t.requires_grad]
            with torch.no_grad():
                gradients = backward(ctx, *grads)
            needed = [g for g in gradients if g is not None]
            attached = iter(_FirstOnly.apply(op, len(needed), *needed, *sources))
            return tuple(None if g is None else next(attached) for g in gradients)

        return wrapped

    return decorate


def no_transforms(op: str, *tensors: Tensor | float | None) -> None:
    """Raise NotImplementedError for a tensor with a forward-mode tangent, which the op would drop, and for one that
    torch.func transforms, of which torch's own error gives no remedy."""
    if torch.compiler.is_compiling():
        return
    if forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return
    operands = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in operands):
        raise NotImplementedError(
            f"{op}: forward-mode derivatives (torch.func.jvp, forward_ad) are not implemented; use reverse mode "
            "(torch.autograd.grad)"
        )
    functorch = torch._C._functorch
    if any(functorch.is_gradtrackingtensor(t) or functorch.is_batchedtensor(t) for t in operands):
        raise NotImplementedError(
            f"{op}: the transforms of torch.func (grad, vmap, jacrev) are not implemented; use torch.autograd.grad, "
            "and a loop instead of vmap"
        )
