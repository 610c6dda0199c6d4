"""Derivatives that the ops do not have are errors: a second one, any of forward mode, and those of torch.func."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from main_kernels import info_nce, linear_cross_entropy, mutual_information

from .calls import PUBLIC, listed
from .contract import error

# club is a sum of products in ordinary torch, which has all derivatives
OPS = [name for name in PUBLIC if name != "mutual_information_club"]


def total(name: str, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return sum(out.sum() for out in listed(PUBLIC[name](query, key)) if out.requires_grad)


@pytest.mark.parametrize("name", OPS)
def test_a_second_derivative_is_an_error(backend, name):
    """In a gradient penalty, however the parameter is reached; the gradient itself is as without a graph."""
    data, key, weight = torch.randn(9, 4), torch.randn(9, 4), torch.randn(4, 4, requires_grad=True)
    inputs = data.clone().requires_grad_()
    loss = total(name, inputs @ weight, key)
    (plain,) = torch.autograd.grad(loss, inputs, retain_graph=True)
    (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
    assert error(plain, gradient) <= 1e-6 * max(1.0, float(plain.abs().max()))
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(gradient.square().sum(), weight)


def test_create_graph_without_a_second_backward_is_no_error(backend):
    query, key = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    loss = info_nce(query, key) + linear_cross_entropy(query, key, torch.arange(5))
    for gradient in torch.autograd.grad(loss, (query, key), create_graph=True):
        assert torch.isfinite(gradient).all()
    torch.autograd.grad(loss, (query, key))


@pytest.mark.parametrize("name", OPS)
def test_a_forward_mode_derivative_is_an_error(backend, name):
    query, key = torch.randn(9, 4), torch.randn(9, 4)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        PUBLIC[name](forward_ad.make_dual(query, torch.ones_like(query)), key)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(PUBLIC[name], (query, key), (query, key))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.vmap])
def test_a_transform_of_torch_func_is_an_error(backend, name, transform):
    query, key = torch.randn(2, 9, 4), torch.randn(2, 9, 4)
    inputs = (query, key) if transform is torch.func.vmap else (query[0], key[0])
    with pytest.raises(NotImplementedError, match=r"torch.func .*; use torch.autograd.grad"):
        transform(lambda q, k: sum(out.sum() for out in listed(PUBLIC[name](q, k))))(*inputs)


def test_ordinary_torch_keeps_its_derivatives():
    query, key = (torch.randn(9, 4, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradgradcheck(
        lambda q: mutual_information(q, key, estimator="club"), (query.requires_grad_(),), check_fwd_over_rev=True
    )


class _Zeros(TorchDispatchMode):
    """Record the shapes of the zeros that autograd makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.zeros.default:
            self.shapes.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("name", [name for name in OPS if name != "segment_pool_attention"])  # its query is a row of k
def test_outputs_without_a_gradient_cost_no_memory(name):
    """The gradients that a forward leaves to its backward are outputs of the op, as large as a head's weight."""
    query, key = (torch.randn(12, 5, requires_grad=True) for _ in range(2))
    loss = total(name, query, key)
    with _Zeros() as zeros:
        loss.backward()
    assert (12, 5) not in zeros.shapes
