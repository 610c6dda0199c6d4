"""The split-plane float32 accumulator behind bfloat16 gradients."""

from __future__ import annotations

import pytest
import torch

from main_kernels.backends import cpu, get_backend
from main_kernels.backends.cpu import CpuBackend
from main_kernels.sweep import backward, plan, products, sweep
from main_kernels.sweep.grad_buffer import GradBuffer

from .contract import DEVICE


def planes(*shape: int) -> GradBuffer:
    """Zero, as a device has it that does not add products to a float32 buffer."""
    return GradBuffer(torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.int16))


def test_a_cpu_keeps_planes():
    made = GradBuffer.empty(torch.empty(3, 4, dtype=torch.bfloat16, device="cpu"))
    assert made.is_split
    assert [plane.dtype for plane in (made.high, made.low)] == [torch.bfloat16, torch.int16]


def test_sums_equal_those_in_float32(backend):
    buffer = planes(300, 70)
    total = torch.zeros(300, 70)
    for step in range(20):
        part = torch.randn(300, 70) * 10.0 ** (step % 5 - 2)
        part = part.bfloat16() if step % 2 else part
        get_backend(backend).accumulate_(buffer.high, buffer.low, part)
        total += part
    buffer.finalize_(get_backend(backend), torch.tensor([0.3]))
    assert torch.equal(buffer.high, (total * 0.3).bfloat16())


def test_scaling_rows_keeps_non_finite_values(backend):
    buffer = planes(3, 4)
    values = torch.tensor([[1.0, float("nan"), float("inf"), -2.0]] * 3)
    get_backend(backend).accumulate_(buffer.high, buffer.low, values)
    buffer.finalize_(get_backend(backend), torch.tensor([1.0, -2.0, 0.5]))
    want = (values * torch.tensor([1.0, -2.0, 0.5])[:, None]).bfloat16()
    assert torch.equal(buffer.high.nan_to_num(nan=9.0), want.nan_to_num(nan=9.0))


def test_small_steps_are_not_lost():
    """A thousand steps of 1/1000 on top of 256: bfloat16 accumulation would still read 256."""
    buffer = planes(1, 8)
    backend = get_backend("plain")
    backend.accumulate_(buffer.high, buffer.low, torch.full((1, 8), 256.0))
    for _ in range(4000):
        backend.accumulate_(buffer.high, buffer.low, torch.full((1, 8), 1e-3))
    buffer.finalize_(backend, torch.ones(1))
    assert (buffer.high == 260).all()


@pytest.mark.skipif(cpu.MODULE is None or DEVICE != "cpu", reason="a question about the C++ backend")
def test_gradients_of_one_product_need_no_sum(monkeypatch):
    """With bfloat16 products a row of the query's gradient is one product; so is one of the key's, in one chunk."""
    monkeypatch.setattr(plan, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(plan, "SMALL_PROBLEM", 0)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 0)
    monkeypatch.setattr(plan, "MIN_CHUNK_ROWS", 64)
    added, add = [], CpuBackend.accumulate_
    monkeypatch.setattr(CpuBackend, "accumulate_", lambda *args: added.append(args[-1].shape) or add(*args))
    leaves = [torch.randn(n, 32).bfloat16().requires_grad_() for n in (128, 300)]

    def gradients(rows: int) -> list[torch.Tensor]:
        query, key = leaves[0][:rows], leaves[1]
        loss = sweep(query, key, workspace_bytes=0).row_lse.square().sum()
        return list(torch.autograd.grad(loss, leaves))

    for rows, sums in ((64, []), (128, [(300, 32)])):
        added.clear()
        got = gradients(rows)
        assert added == sums
        with monkeypatch.context() as patch:
            patch.setattr(backward, "_are_sums", lambda *_: (True, True))
            assert all(map(torch.equal, got, gradients(rows)))


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU adds products to a float32 buffer while it computes them")
def test_a_float32_buffer_takes_bfloat16_products(monkeypatch):
    monkeypatch.setattr(products, "_SLICE_BYTES", 0)  # slices of 256 rows
    left, right = torch.randn(600, 40).bfloat16(), torch.randn(40, 24).bfloat16()
    buffer = GradBuffer.empty(torch.empty(600, 24, dtype=torch.bfloat16), dtype=torch.float32)
    assert not buffer.is_split
    for first in (True, False, False):
        buffer.add_product(get_backend("plain"), left, right, first=first)
    part = (left @ right).float()
    buffer.finalize_(get_backend("plain"), torch.tensor([0.5]))
    assert torch.equal(buffer.result(torch.float32), (part + part + part) * 0.5)


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("result", [torch.bfloat16, torch.float32])
def test_a_buffer_of_fewer_rows_has_the_same_planes(rows, result):
    whole = GradBuffer.empty(torch.empty(5, 4, dtype=torch.bfloat16, device=DEVICE), dtype=result)
    part = whole.empty_rows(rows)
    own = GradBuffer.empty(torch.empty(rows, 4, dtype=torch.bfloat16, device=DEVICE), dtype=result)
    assert [(plane.shape, plane.dtype) for plane in (part.high, part.low)] == [
        (plane.shape, plane.dtype) for plane in (own.high, own.low)
    ]


@pytest.mark.skipif(DEVICE != "cpu", reason="a question about chunks on a CPU")
@pytest.mark.parametrize("workspace_bytes", [0, 1 << 20])
def test_sums_of_chunks_under_autocast_are_not_rounded(monkeypatch, workspace_bytes):
    """The gradient of a float32 leaf is the sum of bfloat16 products, and not that sum in bfloat16."""
    monkeypatch.setattr(plan, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(plan, "SMALL_PROBLEM", 0)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 0)
    monkeypatch.setattr(plan, "MIN_CHUNK_ROWS", 64)
    query, key = (torch.randn(n, 32).requires_grad_() for n in (256, 300))
    narrow = [leaf.detach().bfloat16().requires_grad_() for leaf in (query, key)]

    def gradients(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = sweep(query, key, workspace_bytes=workspace_bytes).row_lse.square().sum()
        return torch.autograd.grad(loss, (query, key))

    with torch.autocast("cpu", torch.bfloat16):
        mine = gradients(query, key)
    assert not torch.equal(mine[1], mine[1].bfloat16().float())
    for ours, rounded in zip(mine, gradients(*narrow), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours.bfloat16(), rounded)
