"""Copies between the host and a GPU; on a CPU they are what they copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from main_align.models.host_copies import CopiedToHost, beside_queued_work, to_device

from tests.align.tiny_models import DEVICE
from tests.pretended_gpu.device import is_pretended, waits


def test_numbers_come_back_as_they_were_sent():
    arrays = [np.arange(5), np.arange(6, dtype=np.int32).reshape(2, 3)]
    tensors = [to_device(array, DEVICE) for array in arrays]
    assert all(tensor.device.type == DEVICE for tensor in tensors)
    copies = CopiedToHost(*tensors)
    for found, array in zip(copies.arrays(), arrays, strict=True):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    assert copies.are_there()


def test_a_cpu_has_nothing_queued():
    with beside_queued_work(torch.device("cpu")):
        assert float(torch.ones(2, device="cpu").sum()) == 2


@pytest.mark.skipif(not is_pretended(), reason="a pretended GPU counts what the host waits for")
def test_no_copy_waits():
    waits()
    copies = CopiedToHost(to_device(np.arange(5), "cuda") + 1)
    assert waits() == {}
    assert copies.arrays()[0].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, or a pretended one")
def test_copies_are_there_when_the_stream_of_their_device_is_done(monkeypatch):
    """The stream that an event takes without an argument is one of the current device, which may be another GPU."""
    streams = []

    class Event(torch.Event):
        def record(self, stream=None):
            streams.append(stream)
            super().record(stream)

    monkeypatch.setattr(torch, "Event", Event)
    assert CopiedToHost(torch.ones(2, device="cuda")).arrays()[0].tolist() == [1, 1]
    assert streams == [torch.accelerator.current_stream(torch.device("cuda", 0))]


@pytest.mark.skipif(not is_pretended(), reason="stands in for the functions of a second GPU")
def test_work_beside_what_is_queued_leaves_the_current_device(monkeypatch):
    current = [1]
    monkeypatch.setattr(torch.cuda, "_exchange_device", lambda new: (current[0], current.__setitem__(0, new))[0])
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", lambda new: current.__setitem__(0, new))
    with beside_queued_work(torch.device("cuda", 0)):
        assert current == [0]
    assert current == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, or a pretended one")
def test_work_beside_what_is_queued_has_a_stream_of_its_own():
    device = torch.device("cuda", 0)
    before = torch.accelerator.current_stream(device)
    seen = []

    def failing():
        with beside_queued_work(device):
            seen.append(torch.accelerator.current_stream(device))
            raise ValueError("inside")

    for _ in range(2):
        with pytest.raises(ValueError, match="inside"):
            failing()
        assert torch.accelerator.current_stream(device) == before
    assert seen[0] == seen[1] != before
