"""The check can fail: faults that are planted in launches of our kernels are found."""

from __future__ import annotations

import pytest
import torch
from ttsem.sanitize import KernelFault

from main_kernels.backends.triton import configs
from main_kernels.backends.triton.kernel_args import Sums
from main_kernels.backends.triton.launch import launch
from main_kernels.backends.triton.reduce_partials import reduce_partials
from main_kernels.backends.triton.split_float32 import accumulate


def reduce_to(length: int) -> None:
    """Reduce three partial sums of 40 columns to ``length`` of them."""
    none = [None] * (len(Sums._fields) - 2)
    parts = Sums(torch.zeros(3, 40), torch.ones(3, 40), *none)
    sums = Sums(torch.full((length,), -torch.inf), torch.zeros(length, dtype=torch.float64), *none)
    tile = configs.REDUCE_PARTIALS
    launch(reduce_partials, -(-40 // tile.BLOCK_N), tile, 3, 40, 0.0, parts, sums, None, None, FIRST=False)


def accumulate_at(distance: int) -> None:
    """Add to two planes that are ``distance`` elements apart."""
    block = configs.SPLIT_FLOAT32
    count = 2 * block.BLOCK
    planes = torch.zeros(distance + count, dtype=torch.int16)
    launch(accumulate, 2, block, planes[:count], planes[distance:], torch.ones(count), count)


def test_right_launches_are_accepted():
    reduce_to(40)
    accumulate_at(2 * configs.SPLIT_FLOAT32.BLOCK)


def test_an_access_out_of_bounds_is_found():
    with pytest.raises(KernelFault, match="past the end"):
        reduce_to(36)


def test_a_race_is_found():
    with pytest.raises(KernelFault, match="both touch element"):
        accumulate_at(configs.SPLIT_FLOAT32.BLOCK)
