"""Cases of mutual information: single estimators, and all bounds from one sweep."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Case, Row, Target, op, unit
from .contrastive import GOAL, MUST

TEMPERATURE, CLIP = 0.2, 5.0
SHAPES = {"small": {"n": 1024, "d": 256}, "medium": {"n": 2048, "d": 512}, "large": {"n": 4096, "d": 512}}


def parts(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all scores [N, N], the scores of the pairs [N], and the mask of all other scores [N, N]."""
    scores = (query @ key.T).float() / TEMPERATURE
    return scores, scores.diagonal(), ~torch.eye(scores.shape[0], dtype=torch.bool)


def log_mean_exp(scores: Tensor, others: Tensor) -> Tensor:
    n = scores.shape[0]
    return scores.masked_fill(~others, -math.inf).flatten().logsumexp(0) - math.log(n * (n - 1))


def nwj(query: Tensor, key: Tensor) -> Tensor:
    scores, joint, others = parts(query, key)
    return joint.mean() - (log_mean_exp(scores, others) - 1).exp()


def js(query: Tensor, key: Tensor) -> Tensor:
    scores, joint, others = parts(query, key)
    n = scores.shape[0]
    return -F.softplus(-joint).mean() - F.softplus(scores).masked_fill(~others, 0.0).sum() / (n * (n - 1))


def bounds(query: Tensor, key: Tensor) -> dict[str, Tensor]:
    scores, joint, others = parts(query, key)
    n, value = scores.shape[0], joint.mean()
    partition = log_mean_exp(scores, others)
    shannon = -F.softplus(-joint).mean() - F.softplus(scores).masked_fill(~others, 0.0).sum() / (n * (n - 1))
    clipped = value - log_mean_exp(scores.clamp(-CLIP, CLIP), others)
    return {
        "infonce": math.log(n) + (joint - scores.logsumexp(1)).mean(),
        "nwj": value - (partition - 1).exp(),
        "tuba": 1 + value - partition.exp(),
        "dv": value - partition,
        "js": shannon,
        "smile": shannon + (clipped - shannon).detach(),
        "club": value - scores.mean(),
    }


def estimator(name: str, dtype: torch.dtype, n: int, d: int) -> Row:
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    row = Row([query, key])
    row.products(query, key, 3)
    information = op("mutual_information")
    row.train("ours", lambda: information(query, key, temperature=TEMPERATURE, estimator=name))
    dense = {"nwj": nwj, "js": js}[name]
    row.dense(lambda: dense(query, key))
    return row


def all_bounds(dtype: torch.dtype, n: int, d: int) -> Row:
    """Build a row of all bounds with InfoNCE in one and both directions as floors, for forward and forward+backward."""
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    row, one = Row([query, key]), Row([query, key])
    row.products(query, key, 1, 3)
    for direction in ("query", "both"):

        def loss(direction: str = direction) -> Tensor:
            return op("info_nce")(query, key, temperature=TEMPERATURE, direction=direction)

        one.forward(f"info_nce_{direction}_forward", loss)
        one.train(f"info_nce_{direction}", loss)
    for name, contender in one.contenders.items():
        row.baseline(name, contender)

    def ours() -> Tensor:
        values = op("mutual_information_bounds")(query, key, temperature=TEMPERATURE)
        return torch.stack(list(values.values())).sum()

    def dense() -> Tensor:
        return torch.stack(list(bounds(query, key).values())).sum()

    row.forward("ours_forward", ours)
    row.train("ours", ours)
    row.forward("eager_forward", dense)
    row.dense(dense)
    return row


CASES = [
    *(
        Case(
            f"mutual_information_{name}",
            "information",
            lambda dtype, n, d, name=name: estimator(name, dtype, n, d),
            SHAPES,
            [Target("ours", "products_3", MUST, GOAL)],
            bfloat16=name == "nwj",
        )
        for name in ("nwj", "js")
    ),
    Case(
        "mutual_information_bounds",
        "information",
        all_bounds,
        SHAPES,
        [
            Target("ours_forward", "info_nce_query_forward", 1.15),
            Target("ours_forward", "info_nce_both_forward", 1.15),
            Target("ours", "info_nce_query"),
            Target("ours", "info_nce_both"),
            Target("ours_forward", "products_1"),
            Target("ours", "products_3"),
        ],
    ),
]
