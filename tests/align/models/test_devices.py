"""The device and the number format that a run ends up with."""

from __future__ import annotations

import logging

import pytest
import torch
from main_align.errors import UserError
from main_align.models import devices


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "nonsense", "cpu:x", "mps:7", ""])
def test_a_missing_device_is_refused(name):
    with pytest.raises(UserError, match=f"device '{name}' cannot be used here .*this machine has cpu"):
        devices.pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(UserError, match="device 'cuda' cannot be used here"):
        devices.pick_device("cuda")
    assert devices.pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_selects_the_fastest_dtype(monkeypatch, fast, dtype):
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda: fast)
    assert devices.pick_dtype("auto", torch.device("cpu")) == dtype
    assert devices.pick_dtype("float16", torch.device("cpu")) == torch.float16
    with pytest.raises(UserError, match="dtype must be auto or one of float32, bfloat16, float16, got 'half'"):
        devices.pick_dtype("half", torch.device("cpu"))


def test_slow_bfloat16_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda: False)
    devices._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        for dtype in (torch.float32, torch.bfloat16, torch.bfloat16):
            devices.warn_if_slow(dtype, torch.device("cpu"))
    assert [record.getMessage() for record in caplog.records] == [devices.SLOW_BFLOAT16]
