"""Where there is a GPU, the tests whose models lie on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.align.tiny_models import DEVICE


@pytest.fixture
def on_the_device() -> Iterator[None]:
    """Tensors are made there without being told. Not for trainers: their samplers have generators on the CPU."""
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
    yield
    if DEVICE != "cpu":
        torch.set_default_device(None)
