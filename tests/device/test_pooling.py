"""Tests of the CUDA kernels that need a device: graphs, streams, a device that is not the current one."""

from __future__ import annotations

import pytest
import torch

from main_kernels import segment_pool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def problem(device="cuda"):
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(300, 264, device=device, generator=generator).bfloat16().requires_grad_()
    query = torch.randn(264, device=device, generator=generator).requires_grad_()
    offsets = torch.tensor([0, 150, 150, 151, 290], device=device)
    return hidden, query, offsets


def pooled(hidden, query, offsets):
    out = segment_pool(hidden, offsets, mode="attention", query=query)
    return out.detach(), *torch.autograd.grad(out.float().square().sum() + out[0, 0], (hidden, query))


def test_pooling_runs_in_a_cuda_graph():
    arguments = problem()
    want = pooled(*arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        pooled(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = pooled(*arguments)
    for _ in range(2):
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_pooling_runs_on_the_current_stream():
    """Behind work that takes long: a launch on another stream would read what is not there yet."""
    hidden, query, offsets = problem()
    want = pooled(hidden, query, offsets)
    late = torch.zeros_like(hidden)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        late.copy_(hidden.detach())
        got = pooled(late.requires_grad_(), query, offsets)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_pooling_runs_on_the_device_of_the_tensors():
    with torch.cuda.device(0):
        got = pooled(*problem("cuda:1"))
        assert torch.cuda.current_device() == 0
    want = pooled(*problem("cuda:0"))
    assert all(a.get_device() == 1 and torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, want, strict=True))
