"""The pretended GPU itself. Run by `python -m tests.pretended_gpu`, and with a few others by
tests/test_pretended_gpu.py."""

from __future__ import annotations

import io

import pytest
import torch

from .device import is_pretended, waits

pytestmark = pytest.mark.skipif(not is_pretended(), reason="not in a process with a pretended GPU")


def test_tensors_of_two_devices_do_not_mix():
    there, here = torch.randn(4, 5, device="cuda"), torch.randn(4, 5)
    for mixing in (lambda: there + here, lambda: here @ there.T, lambda: torch.cat([there, here])):
        with pytest.raises(RuntimeError, match="same device"):
            mixing()
    with pytest.raises(RuntimeError, match="ordinal"):
        torch.zeros(1, device="cuda:1")


def test_values_and_gradients_are_those_of_the_cpu():
    here = [torch.randn(n, 8, requires_grad=True) for n in (6, 7)]
    there = [t.detach().to("cuda").requires_grad_() for t in here]
    for left, right in (here, there):
        ((left @ right.T)[1:, ::2].relu().cumsum(0).logsumexp(1) ** 2).sum().backward()
    for a, b in zip(here, there, strict=True):
        assert b.grad.is_cuda
        assert torch.equal(a.grad, b.grad.cpu())


def test_views_share_memory_and_results_are_resized():
    x = torch.zeros(3, 4, device="cuda")
    x.T[1:, 0].fill_(2)
    assert x.tolist() == [[0, 2, 2, 2], [0] * 4, [0] * 4]
    out = torch.empty(0, device="cuda")
    torch.add(x, 1, out=out)
    assert out.sum().item() == 18


def test_files_keep_the_device():
    x, file = torch.randn(5, device="cuda"), io.BytesIO()
    torch.save(x, file)
    for place in ("cuda", "cpu"):
        file.seek(0)
        read = torch.load(file, map_location=place)
        assert read.device.type == place
        assert torch.equal(read.cpu(), x.cpu())


def test_what_the_host_waits_for_is_counted():
    x = torch.ones(3, device="cuda")
    waits()
    x.sum().exp()
    assert waits() == {}
    x.sum().item(), x.tolist(), x.nonzero(), torch.zeros(2).to("cuda"), torch.zeros(2).to("cuda", non_blocking=True)
    counted = waits()
    assert counted["read of a number"] == 1
    assert counted["count of nonzero elements"] == 1
    assert counted["copy to the device"] == 1
    assert counted["copy to the host"] >= 1
