"""pytest-benchmark suite of the ops, to watch one machine over time: python -m pytest bench --benchmark-autosave

For ratios to matrix products and to the peers use kernels.py, which interleaves what it compares.
"""

from __future__ import annotations

import pytest
import torch

from main_kernels import info_nce, pair_scores, segment_pool, token_logprobs

DTYPES = [torch.float32, torch.bfloat16]


def leaf(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, width)).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_token_logprobs(benchmark, dtype):
    hidden, weight = leaf(512, 512, dtype), leaf(16000, 512, dtype)
    targets = torch.randint(0, 16000, (512,))
    benchmark(lambda: token_logprobs(hidden, weight, targets).mean().backward())


@pytest.mark.parametrize("workspace", [0, 1 << 28], ids=["recomputed", "kept"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_info_nce(benchmark, dtype, workspace):
    query, key = leaf(2048, 512, dtype), leaf(2048, 512, dtype)
    benchmark(lambda: info_nce(query, key, workspace=workspace).backward())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pair_scores(benchmark, dtype):
    query, key = leaf(2048, 512, dtype), leaf(2048, 512, dtype)
    with torch.no_grad():
        benchmark(lambda: pair_scores(query, key))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segment_pool(benchmark, dtype):
    hidden = leaf(16384, 576, dtype)
    offsets = torch.arange(0, 16385, 128)
    with torch.no_grad():
        benchmark(lambda: segment_pool(hidden, offsets))
