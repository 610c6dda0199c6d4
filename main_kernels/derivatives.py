"""What ops do with derivatives that they do not have: an error in place of a wrong number.

``first_only`` decorates the backward of an op, ``no_tangents`` goes before its forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _FirstOnly(torch.autograd.Function):
    """Gradients as they are, joined to all that they depend on; going back through them is an error."""

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
    """All tensors among the arguments, in lists too."""
    flat = [x for a in arguments for x in (a if isinstance(a, (list, tuple)) else [a])]
    return [t for t in flat if isinstance(t, Tensor)]


def first_only(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the backward of ``op``: where a graph of it is asked for, what depends on its gradients raises
    RuntimeError when it is differentiated. Without, second-order terms would be dropped silently, because the kernels
    that fill the gradients are unknown to autograd."""

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Any) -> Any:
            if not torch.is_grad_enabled():
                return backward(ctx, *grads)
            sources = [t for t in (*_tensors(ctx.saved_tensors), *_tensors(grads)) if t.requires_grad]
            with torch.no_grad():
                gradients = backward(ctx, *grads)
            wanted = [g for g in gradients if g is not None]
            joined = iter(_FirstOnly.apply(op, len(wanted), *wanted, *sources))
            return tuple(None if g is None else next(joined) for g in gradients)

        return wrapped

    return decorate


def no_tangents(op: str, *tensors: Tensor | float | None) -> None:
    """Raises NotImplementedError where one of the tensors has a tangent of forward-mode AD, which an op would drop."""
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{op}: forward-mode derivatives (torch.func.jvp, forward_ad) are not implemented; use reverse mode "
                "(torch.autograd.grad)"
            )
