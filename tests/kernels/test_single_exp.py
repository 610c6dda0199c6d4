"""When the kernels with one exponential per score may run: the forward asks the operands' norms, the backward the
log-sum-exps."""

from __future__ import annotations

import math

import pytest
import torch

from main_kernels import info_nce
from main_kernels.backends import cpu
from main_kernels.backends.cpu import CpuSingleExp
from main_kernels.sweep import problem

from .contract import DEVICE

pytestmark = [
    pytest.mark.skipif(cpu.MODULE is None, reason="the C++ kernels are not built"),
    pytest.mark.skipif(DEVICE != "cpu", reason="a question about CPUs"),
]


@pytest.mark.parametrize("instruction_set", cpu.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_norm_is_infinite_unless_all_entries_are_finite(instruction_set, dtype):
    operand = torch.randn(37, 301).to(dtype)
    operand[30] *= 5
    with cpu.use_instruction_set(instruction_set):
        got = CpuSingleExp().largest_norm(operand)
        assert got == pytest.approx(float(operand.float().norm(dim=1).max()), rel=1e-5)
        for wrong in (torch.nan, torch.inf, -torch.inf):
            other = operand.clone()
            other[5, 300] = wrong
            assert CpuSingleExp().largest_norm(other) == math.inf


@pytest.mark.parametrize(("scale", "is_single"), [(36.0, True), (60.0, False)])
def test_the_backward_uses_one_exponential_if_the_log_sum_exps_are_small(monkeypatch, scale, is_single):
    """Of these scores most are far below the smallest exponent of a float32."""
    count, calls = 80, []
    draw = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(20, 16, generator=draw), dim=1)
    direction = directions.repeat(4, 1)  # four scores in each row and column are about as large
    lengths = 10 + 0.02 * torch.randn(count, 1, generator=draw)
    query = torch.cat([direction, torch.full((count, 1), 3.0)], 1)
    key = torch.cat([lengths * direction, torch.full((count, 1), -3.0)], 1)  # inner products from -19 to the pairs' 1
    leaves = [query.requires_grad_(), key.requires_grad_()]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(info_nce(query, key, temperature=1 / scale), leaves)

    run = CpuSingleExp.score_grad_
    monkeypatch.setattr(CpuSingleExp, "score_grad_", lambda *args: calls.append(1) or run(*args))
    got = gradients()
    assert bool(calls) == is_single
    assert float(got[0].abs().max()) > 0.01
    monkeypatch.setattr(problem.Problem, "allows_single_exp", lambda self: False)
    for one, several in zip(got, gradients(), strict=True):
        torch.testing.assert_close(one, several, rtol=1e-5, atol=1e-7 * scale)
