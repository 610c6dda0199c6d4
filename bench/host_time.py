"""Time what the host does for an op on a GPU, without a GPU: microseconds until the main kernel is queued.

    python -m bench host-time -o bench/results/host_time.json

Triton's runtime launches over a stand-in for the driver (stand_in.py), where a launch does nothing, and matrix products
do nothing either. Tensors are on the CPU and short, so torch's own operations take about as long as queueing them on a
GPU would. The main launch is the first matrix product, or the first kernel that contains one. Each op runs many times
in turn with the others; the table has the median and the least, and the operations of torch and the calls of Python
functions before the main launch, which do not depend on the machine's load. The first two rows are torch's own floor:
an op, and an autograd.Function, that contain one product and nothing else.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from main_kernels import (
    info_nce,
    linear_cross_entropy,
    linear_kl,
    pair_scores,
    row_logsumexp,
    sigmoid_loss,
    token_logprobs,
)
from main_kernels.backends.workspace import WorkspacePool
from main_kernels.sweep import plan, products

from . import stand_in
from .command import at_least_one, command_parser, output_file
from .measure import machine

PREPARING = ("target_scores",)
"""Kernels that may precede the main launch."""

PASSES = ("forward", "backward")


@torch.library.custom_op("main_kernels_bench::empty_op", mutates_args=())
def empty_op(left: Tensor, right: Tensor) -> Tensor:
    """An op that only multiplies: what precedes its product is torch's own."""
    products.multiply(left, right, left)
    return left.new_empty(left.shape[0])


def _empty_backward(_: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    products.multiply(grad, grad, grad)
    return grad.new_empty(len(grad), 64), grad.new_empty(len(grad), 64)


empty_op.register_autograd(_empty_backward)


class EmptyFunction(torch.autograd.Function):
    """The same without torch.library."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        products.multiply(left, right, left)
        return left.new_empty(left.shape[0])

    backward = staticmethod(_empty_backward)


SCALE, BIAS = torch.ones((), requires_grad=True), -torch.ones(())
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "empty torch.library op": lambda h, k, t: empty_op(h, k).sum(),
    "empty autograd.Function": lambda h, k, t: EmptyFunction.apply(h, k).sum(),
    "info_nce": lambda h, k, t: info_nce(h, k, workspace_bytes=0),
    "info_nce kept": lambda h, k, t: info_nce(h, k),
    "sigmoid_loss": lambda h, k, t: sigmoid_loss(h, k, logit_scale=SCALE, logit_bias=BIAS, workspace_bytes=0),
    "token_logprobs": lambda h, w, t: token_logprobs(h, w, t, ignore_index=None).sum(),
    "linear_cross_entropy": lambda h, w, t: linear_cross_entropy(h, w, t, ignore_index=None),
    "linear_kl": lambda h, w, t: linear_kl(h, w, h.detach(), w.detach()),
    "pair_scores": lambda h, k, t: pair_scores(h, k).pmi.sum(),
    "row_logsumexp": lambda h, w, t: row_logsumexp(h, w, workspace_bytes=0).sum(),
}
"""One call of each op on two matrices in bfloat16 and the targets of the first one's rows."""
FLOORS = "empty torch.library op", "empty autograd.Function"
"""An op and a function that contain one product and nothing else: torch's own share."""
PAIRED = (*FLOORS, "info_nce", "info_nce kept", "sigmoid_loss", "pair_scores")
"""The ops whose matrices have as many rows."""


class Products:
    """Stands in for main_kernels.sweep.products: notes when the first product is queued, and does nothing."""

    def __init__(self) -> None:
        self.first_ns = 0

    def __call__(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        self.first_ns = self.first_ns or time.perf_counter_ns()


@contextmanager
def pretended_products() -> Iterator[Products]:
    """Run products as on a device that leaves them in float32, except that they do nothing. Scratch memory comes from
    torch, as that of a device does."""
    made = Products()
    with (
        patch.object(products, "multiply", made),
        patch.object(products, "add_product", made),
        patch.object(products, "leaves_float32", lambda _: True),
        patch.object(plan, "has_fast_bfloat16", lambda: True),
        patch.object(WorkspacePool, "acquire", lambda _, shape, dtype, device: torch.empty(shape, dtype=dtype)),
        patch.object(WorkspacePool, "release", lambda *_: None),
    ):
        yield made


class Measured(NamedTuple):
    """One call."""

    before: float | None
    """microseconds until the main launch; None if there is none, as in the backward of a loss whose forward computed
    the gradient"""
    whole: float
    """microseconds until the call returns"""


def timed(made: Products, run: Callable[[], Any]) -> Measured:
    """Time one call."""
    stand_in.notes()
    made.first_ns = 0
    begin = time.perf_counter_ns()
    run()
    end = time.perf_counter_ns()
    queued = [note.time_ns for note in stand_in.notes() if _is_main(note)]
    queued += [made.first_ns] if made.first_ns else []
    return Measured((min(queued) - begin) / 1e3 if queued else None, (end - begin) / 1e3)


def _is_main(note: stand_in.Note) -> bool:
    return bool(note.time_ns) and note.what not in PREPARING


def calls_before_main(run: Callable[[], Any]) -> int | None:
    """Count the functions that are called before the main launch, those of Python and those of C: the number of each
    torch operation, allocation and struct is in it, and it is the same on every run."""
    seen, at_launch = 0, []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")
        is_launch = event == "c_call" and argument.__qualname__ == "launch"
        is_product = event == "call" and frame.f_code is Products.__call__.__code__
        if is_launch or is_product:
            at_launch.append((seen, is_product))

    stand_in.notes()
    gc.disable()  # a collection calls finalizers of whatever was dropped before
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        gc.enable()
    launches = iter([note for note in stand_in.notes() if note.time_ns])
    return next((count for count, is_product in at_launch if is_product or _is_main(next(launches))), None)


class Op:
    """One op on its operands, which `forward` and `backward` run in turn."""

    def __init__(self, name: str, rows: int = 640, columns: int = 1152, width: int = 64) -> None:
        draw, columns = torch.Generator().manual_seed(0), rows if name in PAIRED else columns
        self._leaves = [torch.randn(n, width, generator=draw).bfloat16().requires_grad_() for n in (rows, columns)]
        self._targets, self._call = torch.randint(columns, (rows,), generator=draw), CALLS[name]
        self._out: Tensor | None = None

    def forward(self) -> None:
        self._out = self._call(*self._leaves, self._targets)

    def backward(self) -> None:
        """Of the last forward."""
        assert self._out is not None
        torch.autograd.grad(self._out, self._leaves)


def measured(rounds: int) -> list[dict[str, Any]]:
    """Return one row for each op and pass."""
    ops = {name: Op(name) for name in CALLS}
    samples: dict[tuple[str, str], list[Measured]] = {(name, pass_): [] for name in ops for pass_ in PASSES}
    with stand_in.standing_in(), pretended_products() as made:
        for _ in range(3):  # compiles, and fills every cache
            for op in ops.values():
                op.forward()
                op.backward()
        for _ in range(rounds):
            for (name, pass_), taken in samples.items():
                taken.append(timed(made, getattr(ops[name], pass_)))
        calls = {key: calls_before_main(getattr(ops[key[0]], key[1])) for key in samples}
    rows = []
    for (name, pass_), taken in samples.items():
        before, whole = [each.before for each in taken if each.before is not None], [each.whole for each in taken]
        rows.append(
            {
                "op": name,
                "pass": pass_,
                "us_before": statistics.median(before) if before else None,
                "least_us_before": min(before) if before else None,
                "us": statistics.median(whole),
                "least_us": min(whole),
                "calls_before": calls[name, pass_],
            }
        )
    return rows


def main(words: list[str] | None = None) -> int:
    """Print the table and, with -o, write it."""
    parser = command_parser("host-time", __doc__)
    parser.add_argument("-o", "--output", type=output_file, help="file for the rows as JSON")
    parser.add_argument("--rounds", type=at_least_one, default=200, help="times that each op runs (default 200)")
    options = parser.parse_args(words)
    if reason := stand_in.why_not():
        parser.error(reason)
    torch.set_num_threads(1)
    rows = measured(options.rounds)
    print(f"{'':35}{'before the main launch':>30}{'the whole call':>22}")
    print(f"{'op':25}{'pass':10}{'calls':>10}{'median us':>11}{'least':>9}{'median us':>13}{'least':>9}")
    for row in rows:
        before, least = (row[name] for name in ("us_before", "least_us_before"))
        numbers = "" if before is None else f"{row['calls_before']:10}{before:11.0f}{least:9.0f}"
        print(f"{row['op']:25}{row['pass']:10}{numbers:30}{row['us']:13.0f}{row['least_us']:9.0f}")
    if options.output is not None:
        made = {"machine": machine(), "rounds": options.rounds, "rows": rows}
        options.output.write_text(json.dumps(made, indent=1) + "\n")
    return 0
