"""The C++ loop for the gradient of softplus sums alone, against the plain backend."""

from __future__ import annotations

import pytest
import torch

from main_kernels.backends import ScoreMap, cpu, get_backend
from main_kernels.backends.structs import Mask, ScoreGradTerms

from .contract import DEVICE

pytestmark = [
    pytest.mark.skipif(cpu.MODULE is None, reason="the C++ kernels are not built"),
    pytest.mark.skipif(DEVICE != "cpu", reason="a question about CPUs"),
]
ROWS, COLUMNS = 6, 1100  # more than a block


def _mask(keep_target: bool) -> Mask:
    return Mask(torch.arange(ROWS, dtype=torch.int32) // 2, torch.arange(COLUMNS, dtype=torch.int32) // 3, keep_target)


@pytest.mark.parametrize("instruction_set", cpu.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [None, "bias"])
@pytest.mark.parametrize(
    "mask",
    [None, _mask(True), _mask(False), Mask(None, None, False)],
    ids=["whole", "keep", "drop", "drop the targets alone"],
)
def test_softplus_gradients_match_the_plain_backend(instruction_set, dtype, bias, mask):
    raw = (torch.randn(ROWS, COLUMNS) * 20).to(dtype)  # of some the sigmoid underflows
    score_map = ScoreMap(torch.tensor(3.0))
    targets = torch.tensor([0, 1, 1099, 1023, 1024, 700])
    if bias:
        shifts = torch.randn(COLUMNS)
        shifts[[1, 5, 1030]] = -torch.inf
        score_map = ScoreMap(torch.tensor(3.0), bias=shifts)
    terms = ScoreGradTerms(softplus_grad=torch.randn(ROWS), target_grad=torch.randn(ROWS))
    results = []
    for name in ("cpu", "plain"):
        grad, scale_grad = raw.clone(), torch.empty(ROWS, dtype=torch.float64)
        with cpu.use_instruction_set(instruction_set):
            get_backend(name).score_grad_(grad, score_map, targets, mask, terms, scale_grad, grad)
        results.append((grad.float(), scale_grad))
    (got, got_scale), (want, want_scale) = results
    torch.testing.assert_close(got, want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    torch.testing.assert_close(got_scale, want_scale, rtol=1e-5, atol=1e-2)
