"""Case, Row, Contender, Target and Sweep: shapes, floors, contenders and targets of one benchmark.

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
from main_kernels.processor import has_fast_bfloat16

from ..peers import Absent

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEADS: Mapping[str, Mapping[str, int]] = {
    "smollm2": {"d": 576, "v": 49152},
    "mistral-7b": {"d": 4096, "v": 32000},
    "llama-3-8b": {"d": 4096, "v": 128256},
    "llama-3-70b": {"d": 8192, "v": 128256},
}
"""Width and vocabulary of the heads of models that people train."""
SIZES = ("small", "medium", "large", "large-wide", *HEADS)
"""Sizes that can be chosen. A case has some of them; `large-wide` is a head twice as wide as `large`."""
DEFAULT_SIZES = ("small", "large")
CHUNK = 512
Phase = Literal["forward", "forward+backward"]
Loss = Callable[[], Tensor]

warnings.filterwarnings(
    "ignore", category=FutureWarning, module=r"torch\._inductor"
)  # torch calls its own deprecated functions


Limit = float | Mapping[str, float] | None  # a mapping gives one limit per dtype


@dataclass(frozen=True)
class Target:
    """Wanted cost of `run` in units of `against`, a floor or another run: at most `must`, better `goal`.

    Without a limit the ratio is only reported.
    """

    run: str
    against: str
    must: Limit = None
    goal: Limit = None
    quantity: Literal["time", "memory"] = "time"

    def in_row(self, dtype: str) -> dict[str, Any]:
        """Return the target with its limits for a dtype, as rows of results hold it."""

        def limit(of: Limit) -> float | None:
            return of[dtype] if isinstance(of, Mapping) else of

        return {
            "run": self.run,
            "against": self.against,
            "quantity": self.quantity,
            "must": limit(self.must),
            "goal": limit(self.goal),
        }


@dataclass(frozen=True)
class Sweep:
    """Five sizes of one dimension, and how time and memory are expected to grow with it: as its power.

    Memory is that of ours, beyond inputs and gradients.
    """

    shape: Mapping[str, int]
    sizes: Sequence[int]
    time: float
    memory: float


@dataclass(frozen=True)
class Case:
    """One op: how to build a row, its shapes by size, and its claims."""

    name: str
    family: str
    build: Callable[..., Row]  # build(dtype, **shape)
    shapes: Mapping[str, Mapping[str, int]]  # size -> shape
    targets: Sequence[Target]
    bfloat16: bool = True  # measured at large sizes only, see dtypes
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)  # by dimension

    def dtypes(self, size: str) -> Sequence[str]:
        """Return the dtypes measured at a size. Without bfloat16 instructions a peer's product takes minutes."""
        is_measured = self.bfloat16 and size in ("large", "large-wide") and has_fast_bfloat16()
        return ("float32", "bfloat16") if is_measured else ("float32",)

    def inputs(self, size: str) -> Sequence[str]:
        """Return the inputs measured at a size: drawn at random, and hidden states of the model of that name."""
        return ("random", "smollm2") if size == "smollm2" and "inputs" in _parameters(self.build) else ("random",)

    def row(self, dtype: str, shape: Mapping[str, int], inputs: str = "random") -> Row:
        """Build the row with seeded inputs."""
        torch.manual_seed(0)
        real = {"inputs": inputs} if inputs != "random" else {}
        return self.build(DTYPES[dtype], **shape, **real)

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


def _parameters(function: Callable[..., Any]) -> Mapping[str, Any]:
    return inspect.signature(function).parameters


def op(name: str, *keywords: str) -> Callable[..., Any]:
    """Return a public function of main_kernels. If it is missing or lacks a keyword, calls raise `Absent`."""
    function: Callable[..., Any] | None = getattr(main_kernels, name, None)
    reason = f"main_kernels has no {name}"
    if function is not None:
        lacking = [word for word in keywords if word not in _parameters(function)]
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
