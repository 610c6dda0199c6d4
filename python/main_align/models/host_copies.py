"""to_device, CopiedToHost, beside_queued_work: what keeps the host from waiting for all work that a GPU has to do.

A copy from or to memory that is not pinned waits until the GPU has done all work before it in the same stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """Return a tensor of an array's numbers.

    Args:
        array: the numbers, which must not change afterwards.
        device: where the tensor lies.
    """
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class CopiedToHost:
    """Copies of tensors in the host's memory. Those of a GPU's tensors arrive when its work so far is done.

    Args:
        tensors: the tensors, all of one device.
    """

    def __init__(self, *tensors: Tensor) -> None:
        device = tensors[0].device
        self._event = torch.Event(device) if device.type == "cuda" else None
        self._copies = [tensor.to("cpu", non_blocking=self._event is not None) for tensor in tensors]
        if self._event is not None:
            self._event.record(torch.accelerator.current_stream(device))  # default: that of the current device

    def are_there(self) -> bool:
        """Return True if `arrays` would not wait."""
        return self._event is None or self._event.query()

    def arrays(self) -> list[NDArray[Any]]:
        """Wait for the copies, and return them."""
        if self._event is not None:
            self._event.synchronize()
        return [copy.numpy() for copy in self._copies]


@contextmanager
def beside_queued_work(device: torch.device) -> Iterator[None]:
    """Give a GPU operations that it runs before what is queued. Their operands must be there already.

    Args:
        device: the device. On another than a GPU nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):  # set_stream changes the current device
        before = torch.accelerator.current_stream(device)
        torch.accelerator.set_stream(_other_stream(device))
        try:
            yield
        finally:
            torch.accelerator.set_stream(before)


@cache
def _other_stream(device: torch.device) -> torch.Stream:
    return torch.Stream(device, priority=-1)  # the highest priority
