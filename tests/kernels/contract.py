"""The numerics contract as assertions, and what hypothesis draws to challenge it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from main_kernels import backends
from main_kernels.backends import cpu


def _has(backend: str) -> bool:
    try:
        backends.get_backend(backend)
    except ValueError:
        return False
    return True


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels then run on the CPU
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"  # where the tests make their tensors
FAST = "cpu" if DEVICE == "cpu" else "plain" if backends.registry.why_not_triton(0) else "triton"
BACKENDS = [name for name in dict.fromkeys([FAST, "plain"]) if _has(name)]
BUILDS = [  # (backend, instruction set)
    (name, build) for name in BACKENDS for build in (cpu.instruction_sets() if name == "cpu" else [None])
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def exact(*tensors: Tensor) -> list[Tensor]:
    """float64 leaves with the same values, for the reference: its gradients must not be rounded to a narrow dtype."""
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def ulps(magnitude: float) -> float:
    """Eight float32 units in the last place of ``magnitude``."""
    return 8 * float(np.spacing(np.float32(max(magnitude, 1e-30))))


def largest_logit(scores: Tensor) -> float:
    """The magnitude a value's rounding is measured by: the largest logit, or the log-sum-exp of equal ones."""
    return max(float(scores.detach().abs().max()), math.log(max(scores.shape)))


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got.detach().double() - want.detach().double()).abs().max()) if got.numel() else 0.0


def assert_contract(what: str, got: Tensor, dense: Tensor, reference: Tensor, largest: float) -> None:
    """Error against the reference <= 2 x the dense torch code's error in the same dtype + 8 ulp of the largest term."""
    assert bool(torch.isfinite(got).all()), f"{what}: not finite"
    allowed = 2 * error(dense, reference) + ulps(largest)
    if got.dtype == torch.float64:  # the reference is float64 itself, and its own rounding is all there is to see
        allowed = 1e-12 * max(largest, 1.0)
    mine = error(got, reference)
    assert mine <= allowed, f"{what}: error {mine:.3e}, allowed {allowed:.3e} (dense {error(dense, reference):.3e})"


@dataclass(frozen=True)
class Matrices:
    """A drawn (query, key) or (hidden, weight): sizes, dtype, value scale and memory layout."""

    rows: int
    columns: int
    width: int
    dtype: torch.dtype
    spread: float
    strided: bool
    seed: int

    def draw(self) -> tuple[Tensor, Tensor]:
        generator = seeded(self.seed)

        def make(rows: int) -> Tensor:
            wide = torch.randn(rows, self.width * 2, generator=generator) * self.spread
            tensor = wide[:, ::2] if self.strided else wide[:, : self.width].clone()
            return tensor.to(self.dtype, memory_format=torch.preserve_format)

        left, right = make(self.rows), make(self.columns)
        if self.strided:
            left = torch.stack([left, left], 2).flatten(1)[:, ::2]
            right = right.T.contiguous().T
        return left.requires_grad_(), right.requires_grad_()


def matrices(*, square: bool = False, dtypes: tuple[torch.dtype, ...] = DTYPES) -> st.SearchStrategy[Matrices]:
    sizes = st.sampled_from([1, 2, 3, 7, 8, 17, 64, 129])

    @st.composite
    def build(draw) -> Matrices:  # type: ignore[no-untyped-def]
        rows = draw(sizes)
        return Matrices(
            rows=rows,
            columns=rows if square else draw(st.sampled_from([1, 2, 5, 100, 257, 1031])),
            width=draw(st.sampled_from([1, 3, 8, 13, 32])),
            dtype=draw(st.sampled_from(dtypes)),
            spread=draw(st.sampled_from([0.0, 1e-3, 0.3, 1.0, 5.0])),
            strided=draw(st.booleans()),
            seed=draw(st.integers(0, 2**31)),
        )

    return build()
