"""Case, Row, Contender and Claim: shapes, floors, contenders and claimed ratios of one benchmark.

All contenders of a row compute the same value from the same inputs, so a wrong contender is noticed. Building a row
runs nothing. A missing op or peer raises `Absent` on its first call.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import main_kernels

from ..peers import Absent

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = ("small", "medium", "large")
CHUNK = 512
Phase = Literal["forward", "forward+backward"]
Loss = Callable[[], Tensor]

warnings.filterwarnings(
    "ignore", category=FutureWarning, module=r"torch\._inductor"
)  # torch calls its own deprecated functions


@dataclass(frozen=True)
class Claim:
    """Claim that `contender` costs at most `limit` times `against`, a floor or a contender.

    Without a limit the ratio is only reported.
    """

    contender: str
    against: str
    limit: float | Mapping[str, float] | None = None  # a mapping gives one limit per dtype
    quantity: Literal["time", "memory"] = "time"

    def limit_for(self, dtype: str) -> float | None:
        """Return the limit of a dtype."""
        return self.limit[dtype] if isinstance(self.limit, Mapping) else self.limit


@dataclass(frozen=True)
class Case:
    """One op: how to build a row, its shapes by size, and its claims."""

    name: str
    family: str
    build: Callable[..., Row]  # build(dtype, **shape)
    shapes: Mapping[str, Mapping[str, int]]  # size -> shape
    claims: Sequence[Claim]
    bfloat16: bool = True  # measured at the large size only

    def dtypes(self, size: str) -> Sequence[str]:
        """Return the dtypes measured at a size."""
        return ("float32", "bfloat16") if self.bfloat16 and size == "large" else ("float32",)

    def row(self, dtype: str, shape: Mapping[str, int]) -> Row:
        """Build the row with seeded inputs."""
        torch.manual_seed(0)
        return self.build(DTYPES[dtype], **shape)

    def tiny(self, dtype: str) -> Row:
        """Build a row of tiny shapes, to warm up libraries and thread pools."""
        return self.row(dtype, dict.fromkeys(self.shapes["small"], 64))


@dataclass(frozen=True)
class Contender:
    """One implementation in a row."""

    run: Loss
    phase: Phase
    compiled: bool = False  # True: torch.compile compiles it on its first run


@dataclass
class Row:
    """The floors and contenders that are timed in turn. `leaves` get the gradients."""

    leaves: Sequence[Tensor]
    floors: dict[str, list[Callable[[], Any]]] = field(
        default_factory=dict
    )  # name: variants, of which the fastest counts
    contenders: dict[str, Contender] = field(default_factory=dict)
    bytes_read: int | None = None  # set for memory-bound ops

    def forward(self, name: str, value: Loss) -> None:
        """Add a contender that runs the forward only."""
        self.contenders[name] = Contender(torch.no_grad()(value), "forward")

    def train(self, name: str, loss: Loss, *, compiled: bool = False) -> None:
        """Add a contender that runs forward and backward."""

        def run() -> Tensor:
            for leaf in self.leaves:
                leaf.grad = None
            value = loss()
            value.backward()
            return value.detach()

        self.contenders[name] = Contender(run, "forward+backward", compiled)

    def dense(self, loss: Loss) -> None:
        """Add plain torch code, eager and compiled, with forward and backward."""
        self.train("eager", loss)
        self.train("torch_compile", torch.compile(loss, dynamic=False), compiled=True)

    def dense_forward(self, value: Loss) -> None:
        """Add plain torch code, eager and compiled, with the forward only."""
        self.forward("eager_forward", value)
        compiled = torch.no_grad()(torch.compile(value, dynamic=False))
        self.contenders["torch_compile_forward"] = Contender(compiled, "forward", compiled=True)

    def products(self, left: Tensor, right: Tensor, *counts: int) -> None:
        """Add floors of bare matrix products; see `products`."""
        for count in counts:
            self.floors[f"products_{count}"] = products(left, right, count)

    def baseline(self, name: str, contender: Contender) -> None:
        """Add another op as a floor, because it computes a different value."""
        self.floors[name] = [contender.run]


def products(left: Tensor, right: Tensor, count: int) -> list[Callable[[], None]]:
    """Return bare torch.mm calls into preallocated buffers, whole and in chunks of rows, which use the cache better.

    Args:
        left: [N, D].
        right: [M, D].
        count: 1 computes S = left rightᵀ; 3 adds S right and Sᵀ left; 4 computes S twice.
    """
    left, right = left.detach(), right.detach()
    rows = left.shape[0]
    scores = left.new_empty(rows, right.shape[0])
    d_left, d_right = torch.empty_like(left), torch.empty_like(right)

    def run(chunk: int) -> None:
        for begin in range(0, rows, chunk):
            part = slice(begin, min(begin + chunk, rows))
            for _ in range(2 if count == 4 else 1):
                torch.mm(left[part], right.T, out=scores[part])
            if count > 1:
                torch.mm(scores[part], right, out=d_left[part])
                torch.mm(scores[part].T, left[part], out=d_right)

    return [lambda: run(rows), lambda: run(CHUNK)] if rows > CHUNK else [lambda: run(rows)]


def op(name: str, *keywords: str) -> Callable[..., Any]:
    """Return a public function of main_kernels. If it is missing or lacks a keyword, calls raise `Absent`."""
    function: Callable[..., Any] | None = getattr(main_kernels, name, None)
    reason = f"main_kernels has no {name}"
    if function is not None:
        lacking = [word for word in keywords if word not in inspect.signature(function).parameters]
        if not lacking:
            return function
        reason = f"main_kernels.{name} takes no {', '.join(lacking)}"

    def absent(*arguments: object, **options: object) -> None:
        raise Absent(reason)

    return absent


def unit(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return random unit rows [rows, width] that require gradients."""
    return F.normalize(torch.randn(rows, width)).to(dtype).requires_grad_()


def head(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return states [tokens, width] and a head [vocabulary, width] with unit-variance logits, as leaves."""
    hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width) / width**0.5).to(dtype).requires_grad_()
    return hidden, weight
