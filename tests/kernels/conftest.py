"""Run the library's tests on the GPU if there is one, else (or with CUDA_VISIBLE_DEVICES=) on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .contract import DEVICE


@pytest.fixture(autouse=DEVICE != "cpu")
def _device() -> Iterator[None]:
    """Make the GPU the default device."""
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)
