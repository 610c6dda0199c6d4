"""Cases of structural consistency by D x D matrices and of the divergence between two vocabulary heads."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import HEADS, Case, Row, Target, head, op, products, unit

SHAPES = {"small": {"n": 1024, "d": 256}, "medium": {"n": 4096, "d": 512}, "large": {"n": 8192, "d": 512}}
HEAD_SHAPES = {
    "small": {"t": 256, "student": 256, "teacher": 384, "v": 4096},
    "medium": {"t": 512, "student": 384, "teacher": 512, "v": 8192},
    "large": {"t": 768, "student": 512, "teacher": 768, "v": 16384},
    "smollm2": {"t": 512, "student": HEADS["smollm2"]["d"], "teacher": 960, "v": HEADS["smollm2"]["v"]},
}
"""smollm2: the head of SmolLM2-135M with SmolLM2-360M as the teacher."""


def moments(*pairs: tuple[Tensor, Tensor]) -> list[Callable[[], None]]:
    """Return the products of a D x D matrix from N rows of two sides, and of N rows through it, for each pair."""
    square = pairs[0][0].new_empty(pairs[0][0].shape[1], pairs[0][0].shape[1])
    rows = torch.empty_like(pairs[0][0])

    def run() -> None:
        for left, right in pairs:
            torch.mm(left.T, right, out=square)
            torch.mm(left, square, out=rows)

    return [run]


def cyclic_consistency(dtype: torch.dtype, n: int, d: int) -> Row:
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    row = Row([query, key])
    q, k = query.detach(), key.detach()
    row.floors["products_ndd_4"] = moments((q, q), (k, k))  # cross = within
    ours = op("cyclic_consistency")
    row.train("ours", lambda: ours(query, key))

    def dense() -> Tensor:
        scores = query @ key.T
        return ((scores - scores.T).square() + (query @ query.T - key @ key.T).square()).mean()

    row.dense(dense)
    return row


def relational_scores(dtype: torch.dtype, n: int, d: int) -> Row:
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    row = Row([query, key])
    q, k = query.detach(), key.detach()
    row.floors["products_ndd_6"] = moments((q, q), (k, k), (q, k))
    ours = op("relational_scores")
    row.forward("ours", lambda: ours(query, key).mean())
    row.dense_forward(lambda: -(query @ query.T - key @ key.T).square().mean(1).mean())
    return row


def in_turn(*runs: Callable[[], None]) -> None:
    for run in runs:
        run()


def linear_kl(kind: str, dtype: torch.dtype, t: int, student: int, teacher: int, v: int) -> Row:
    """Build a row with a frozen teacher. Its four products are both score matrices and the student's two gradients."""
    hidden, weight = head(t, student, v, dtype)
    fixed_hidden, fixed_weight = (x.detach() for x in head(t, teacher, v, dtype))
    row = Row([hidden, weight])
    walks = zip(products(hidden, weight, 3), products(fixed_hidden, fixed_weight, 1), strict=True)
    row.floors["products_4"] = [functools.partial(in_turn, *walk) for walk in walks]
    ours = op("linear_kl")
    row.train("ours", lambda: ours(hidden, weight, fixed_hidden, fixed_weight, divergence=kind))

    def dense() -> Tensor:
        student_logp = (hidden @ weight.T).float().log_softmax(1)
        teacher_logp = (fixed_hidden @ fixed_weight.T).float().log_softmax(1)
        if kind == "forward":
            return F.kl_div(student_logp, teacher_logp, reduction="batchmean", log_target=True)
        middle = torch.logaddexp(student_logp, teacher_logp) - math.log(2.0)
        halves = [
            F.kl_div(middle, side, reduction="batchmean", log_target=True) for side in (student_logp, teacher_logp)
        ]
        return (halves[0] + halves[1]) / 2

    row.dense(dense)
    return row


CASES = [
    Case(
        "cyclic_consistency",
        "consistency",
        cyclic_consistency,
        SHAPES,
        [
            Target("ours", "eager", 1 / 5),
            Target("ours", "eager", 1 / 50, quantity="memory"),
            Target("ours", "products_ndd_4"),
        ],
        bfloat16=False,
    ),
    Case(
        "relational_scores",
        "consistency",
        relational_scores,
        SHAPES,
        [Target("ours", "products_ndd_6")],
        bfloat16=False,
    ),
    *(
        Case(
            f"linear_kl_{kind}",
            "consistency",
            lambda dtype, t, student, teacher, v, kind=kind: linear_kl(kind, dtype, t, student, teacher, v),
            HEAD_SHAPES,
            [Target("ours", "products_4", {"float32": 1.10, "bfloat16": 1.15}, 1.08)],
            bfloat16=kind == "forward",
        )
        for kind in ("forward", "js")
    ),
]
