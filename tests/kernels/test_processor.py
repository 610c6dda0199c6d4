"""The one question about the CPU that the engine, the scorer and the trainers share."""

from __future__ import annotations

import torch

from main_kernels.processor import has_fast_bfloat16


def test_fast_bfloat16_is_what_torch_reports():
    assert has_fast_bfloat16() is torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_torch_without_onednn_has_no_fast_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert has_fast_bfloat16() is False
