"""Operands narrower than the products are converted a block at a time, and no bfloat16 product is made on a CPU that
has no instructions for it."""

from __future__ import annotations

import pytest
import torch

from main_kernels.sweep import operand, plan
from main_kernels.sweep.operand import Operand

from .calls import PUBLIC, values_and_gradients
from .contract import DEVICE, error

WITHOUT_PRODUCTS = ("segment_pool", "cyclic", "relational", "mutual_information_club")


def narrow_pair(dtype, rows=40, width=24):
    return [(torch.randn(rows, width) / 2).to(dtype).requires_grad_() for _ in range(2)]


def test_a_large_operand_is_never_converted_as_a_whole(monkeypatch):
    large = torch.randn(3000, 8, dtype=torch.bfloat16)
    assert Operand.of(large, torch.float32).tensor.dtype == torch.float32  # 94 KiB are not worth a second look
    monkeypatch.setattr(operand, "BLOCK_BYTES", 1024 * 8 * 4)
    factor = Operand.of(large, torch.float32)
    assert factor.tensor is large
    sizes = [(rows.start, rows.stop, len(block), block.dtype) for rows, block in factor.blocks()]
    assert sizes == [(i, min(i + 1024, 3000), min(1024, 3000 - i), torch.float32) for i in (0, 1024, 2048)]
    assert torch.equal(torch.cat([block.clone() for _, block in factor.blocks()]), large.float())
    assert Operand.of(large.T, torch.bfloat16).tensor.is_contiguous()


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_blocks_change_only_the_rounding(monkeypatch, name, dtype):
    query, key = narrow_pair(dtype)
    whole = values_and_gradients(PUBLIC[name], query, key)
    monkeypatch.setattr(operand, "BLOCK_BYTES", 1)
    monkeypatch.setattr(operand, "_MIN_BLOCK_ROWS", 7)
    for got, want in zip(values_and_gradients(PUBLIC[name], query, key), whole, strict=True):
        if want is None or not want.is_floating_point():
            continue
        unit = 1e-6 if want.dtype == torch.float32 else torch.finfo(want.dtype).eps
        assert error(got, want) <= 2 * unit * max(1.0, float(want.abs().max()))


@pytest.mark.skipif(DEVICE != "cpu", reason="a question about CPUs")
@pytest.mark.parametrize("name", PUBLIC)
def test_products_use_the_documented_dtypes(monkeypatch, fast_bfloat16, name):
    monkeypatch.setattr(plan, "SMALL_PROBLEM", 0)
    made = []
    scores, add_to = Operand.scores, Operand.add_to

    def scoring(self, left, out):  # type: ignore[no-untyped-def]
        made.append(out.dtype)
        return scores(self, left, out)

    def adding(self, gradient, weights, backend):  # type: ignore[no-untyped-def]
        made.append(weights.dtype)
        add_to(self, gradient, weights, backend)

    monkeypatch.setattr(Operand, "scores", scoring)
    monkeypatch.setattr(Operand, "add_to", adding)
    values_and_gradients(PUBLIC[name], *narrow_pair(torch.bfloat16))
    assert bool(made) != name.startswith(WITHOUT_PRODUCTS)
    assert set(made) <= {torch.bfloat16 if fast_bfloat16 else torch.float32}
