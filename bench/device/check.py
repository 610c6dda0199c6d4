"""check_ops and check_ties: every op once on ragged shapes against float64 on the CPU, before anything is timed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from main_kernels import token_logprobs
from tests.kernels.calls import PUBLIC, values_and_gradients

from .samples import SampleLog

ROWS, WIDTH = 131, 72
BOUNDS = {torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest relative error ‖got - want‖ / ‖want‖ of a value or gradient. TF32 products would exceed the first."""
TIED_WIDTHS = (40, 72, 1024, 4096)


def check_ops(device: str, log: SampleLog) -> list[str]:
    """Run every public op forward and backward in every dtype, and compare with float64 on the CPU.

    Args:
        device: "cuda" or "cpu".
        log: receives one "check" record for each op and dtype.

    Returns:
        The failures, as "op dtype: reason".
    """
    failures = []
    for dtype, bound in BOUNDS.items():
        torch.manual_seed(0)
        inputs = [(torch.randn(ROWS, WIDTH, device="cpu") / math.sqrt(WIDTH)).to(dtype) for _ in range(2)]
        for name, call in PUBLIC.items():
            try:
                got = values_and_gradients(call, *(x.to(device).requires_grad_() for x in inputs))
                want = values_and_gradients(call, *(x.double().requires_grad_() for x in inputs))
                error = max(map(_error, got, want))
                reason = "" if error <= bound else f"relative error {error:.2e}, expected at most {bound:.0e}"
            except Exception as failure:  # the other ops are checked all the same
                error, reason = math.nan, f"{type(failure).__name__}: {str(failure)[:300]}"
            kind = str(dtype).removeprefix("torch.")
            log.add("check", op=name, dtype=kind, error=None if math.isnan(error) else error, failure=reason)
            if reason:
                failures.append(f"{name} {kind}: {reason}")
    return failures


def check_ties(device: str, log: SampleLog) -> list[str]:
    """Check that the kernel of the targets' scores and the kernel of all scores agree bit for bit.

    All columns are equal, so no score may beat the target's and every rank is 0.
    """
    failures = []
    for dtype in (torch.bfloat16, torch.float16):
        for width in TIED_WIDTHS:
            torch.manual_seed(0)
            hidden = torch.randn(ROWS, width, device=device).to(dtype)
            weight = torch.randn(1, width, device=device).to(dtype).expand(300, -1).contiguous()
            targets = torch.arange(ROWS, device=device) * 2
            beaten = int((token_logprobs(hidden, weight, targets, return_stats=True).rank != 0).sum())
            kind = str(dtype).removeprefix("torch.")
            reason = f"{beaten} of {ROWS} targets are ranked below an equal score" if beaten else ""
            log.add("check", op=f"ties D={width}", dtype=kind, error=None, failure=reason)
            if reason:
                failures.append(f"ties D={width} {kind}: {reason}")
    return failures


def _error(got: Tensor | None, want: Tensor | None) -> float:
    """Return ‖got - want‖ / ‖want‖; infinite if one is missing, or if they are not finite at the same places."""
    if got is None or want is None:
        return 0.0 if got is want else math.inf
    got, want = got.cpu().double(), want.double()
    finite = torch.isfinite(want)
    if not torch.equal(torch.isfinite(got), finite):
        return math.inf
    return float((got - want)[finite].norm() / want[finite].norm().clamp(min=1e-6))
