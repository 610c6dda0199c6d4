"""The worked example of docs/engine.md, run from the page itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck

from .contract import assert_contract, exact, largest_logit

PAGE = Path(__file__).parents[2] / "docs" / "engine.md"


@pytest.fixture(scope="module")
def example() -> dict:
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_example_is_exact(backend, example, dtype, workspace_bytes):
    query, key = (torch.randn(90, 16).to(dtype).requires_grad_() for _ in range(2))
    mine, dense = example["decoupled_contrastive"], example["dense_decoupled_contrastive"]
    got, leaves = mine(query, key, scale=0.5, workspace_bytes=workspace_bytes), exact(query, key)
    want = dense(*leaves, scale=0.5)
    assert_contract("loss", got, got.detach(), want, largest_logit(query.double() @ key.double().T))
    gradients = torch.autograd.grad(got, (query, key))
    for gradient, true in zip(gradients, torch.autograd.grad(want, leaves), strict=True):
        assert_contract("gradient", gradient, true.to(dtype), true, 0.5 * 4 / 90)


def test_the_example_is_short_and_differentiable(example):
    source = next(b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "sweep(" in b)
    assert len(source.splitlines()) < 30
    operands = [torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    call = example["decoupled_contrastive"]
    assert gradcheck(lambda q, k, s: call(q, k, scale=s), (*operands, scale))
    assert gradcheck(lambda q, k, s: call(q, k, scale=s, workspace_bytes=0), (*operands, scale))
