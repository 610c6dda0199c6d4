"""The library's tests run on the GPU where there is one, and on the CPU where not (or with CUDA_VISIBLE_DEVICES=)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .contract import DEVICE


@pytest.fixture(autouse=DEVICE != "cpu")
def _device() -> Iterator[None]:
    """Tensors are made there without being told."""
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)
