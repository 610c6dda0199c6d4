"""The one question about the CPU that the engine, the scorer and the trainers share."""

from __future__ import annotations

import torch

from main_kernels.processor import has_fast_bfloat16


def test_the_answer_is_torchs_own():
    assert has_fast_bfloat16() is torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_a_torch_without_onednn_has_none(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert has_fast_bfloat16() is False
