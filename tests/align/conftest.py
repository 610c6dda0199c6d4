"""A fixture that makes the GPU the default device, if there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.align.tiny_models import DEVICE


@pytest.fixture
def on_the_device() -> Iterator[None]:
    """Make the GPU the default device. Not for trainers, whose samplers need generators on the CPU."""
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
    yield
    if DEVICE != "cpu":
        torch.set_default_device(None)
