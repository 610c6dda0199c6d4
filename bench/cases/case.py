"""Case: shapes, floors, contenders and targets of one benchmark.

Everything measured in one row computes the same value from the same inputs, so a contender that computes something else
shows. Building a row runs nothing: an op or a peer that is not there says so (``Absent``) when it is first called.
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

warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")  # of its own deprecated calls


@dataclass(frozen=True)
class Claim:
    """``contender`` costs at most ``limit`` times ``against``, a floor or another contender (None: only reported)."""

    contender: str
    against: str
    limit: float | Mapping[str, float] | None = None  # by dtype where it differs
    quantity: Literal["time", "memory"] = "time"

    def limit_for(self, dtype: str) -> float | None:
        return self.limit[dtype] if isinstance(self.limit, Mapping) else self.limit


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    build: Callable[..., Row]  # build(dtype, **shape)
    shapes: Mapping[str, Mapping[str, int]]  # size -> shape
    claims: Sequence[Claim]
    bfloat16: bool = True  # where it matters, and at the large size

    def dtypes(self, size: str) -> Sequence[str]:
        return ("float32", "bfloat16") if self.bfloat16 and size == "large" else ("float32",)

    def row(self, dtype: str, shape: Mapping[str, int]) -> Row:
        torch.manual_seed(0)
        return self.build(DTYPES[dtype], **shape)

    def tiny(self, dtype: str) -> Row:
        """The same at a size that costs nothing, for what a process does on first use."""
        return self.row(dtype, dict.fromkeys(self.shapes["small"], 64))


@dataclass(frozen=True)
class Contender:
    run: Loss
    phase: Phase
    compiled: bool = False  # by torch.compile, on its first run at a shape


@dataclass
class Row:
    """Contenders that are timed in turn. ``leaves`` get the gradients."""

    leaves: Sequence[Tensor]
    floors: dict[str, list[Callable[[], Any]]] = field(
        default_factory=dict
    )  # name -> ways to do it; the fastest counts
    contenders: dict[str, Contender] = field(default_factory=dict)
    bytes_read: int | None = None  # of an op that is bound by memory

    def forward(self, name: str, value: Loss) -> None:
        self.contenders[name] = Contender(torch.no_grad()(value), "forward")

    def train(self, name: str, loss: Loss, *, compiled: bool = False) -> None:
        def run() -> Tensor:
            for leaf in self.leaves:
                leaf.grad = None
            value = loss()
            value.backward()
            return value.detach()

        self.contenders[name] = Contender(run, "forward+backward", compiled)

    def dense(self, loss: Loss) -> None:
        """``loss`` as written in torch, eager and compiled, forward and backward."""
        self.train("eager", loss)
        self.train("torch_compile", torch.compile(loss, dynamic=False), compiled=True)

    def dense_forward(self, value: Loss) -> None:
        """``value`` as written in torch, eager and compiled, forward alone."""
        self.forward("eager_forward", value)
        compiled = torch.no_grad()(torch.compile(value, dynamic=False))
        self.contenders["torch_compile_forward"] = Contender(compiled, "forward", compiled=True)

    def products(self, left: Tensor, right: Tensor, *counts: int) -> None:
        for count in counts:
            self.floors[f"products_{count}"] = products(left, right, count)

    def baseline(self, name: str, contender: Contender) -> None:
        """Another op that a claim compares with, timed among the floors: it computes another value."""
        self.floors[name] = [contender.run]


def products(left: Tensor, right: Tensor, count: int) -> list[Callable[[], None]]:
    """Bare torch.mm calls into buffers made beforehand: 1 is S = left rightᵀ; 3 adds S right and Sᵀ left; 4 makes S
    once more. In one piece, and in chunks of rows, which are kinder to the cache."""
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
    """A public function of main_kernels, or one that says ``Absent`` where this build has none, or none that takes
    these keywords."""
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
    """[rows, width] of unit length, a leaf."""
    return F.normalize(torch.randn(rows, width)).to(dtype).requires_grad_()


def head(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """States [tokens, width] and a head [vocabulary, width] whose logits have variance one; leaves."""
    hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width) / width**0.5).to(dtype).requires_grad_()
    return hidden, weight
