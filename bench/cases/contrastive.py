"""Cases of InfoNCE with its options, the sigmoid loss, and pair scores."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import peers
from .case import Case, Row, Sweep, Target, op, unit

TEMPERATURE, SMOOTHING = 0.07, 0.1
SHAPES = {"small": {"n": 1024, "d": 256}, "medium": {"n": 2048, "d": 512}, "large": {"n": 4096, "d": 512}}
MUST, GOAL = {"float32": 1.06, "bfloat16": 1.10}, {"float32": 1.03, "bfloat16": 1.06}
FORWARD_MUST, FORWARD_GOAL = {"float32": 1.12, "bfloat16": 1.15}, 1.08
SWEEPS = {
    "n": Sweep({"d": 256}, (512, 1024, 2048, 4096, 8192), time=2, memory=2),
    "d": Sweep({"n": 2048}, (64, 128, 256, 512, 1024), time=1, memory=0),
}


def symmetric(scores: Tensor, label_smoothing: float = 0.0) -> Tensor:
    labels = torch.arange(scores.shape[0])
    rows = F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
    columns = F.cross_entropy(scores.T, labels, label_smoothing=label_smoothing)
    return (rows + columns) / 2


def info_nce(dtype: torch.dtype, n: int, d: int) -> Row:
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    row = Row([query, key])
    row.products(query, key, 1, 3, 4)
    loss = op("info_nce")
    row.train("ours", lambda: loss(query, key, temperature=TEMPERATURE))
    row.train("ours_recomputed", lambda: loss(query, key, temperature=TEMPERATURE, workspace_bytes=0))
    row.forward("ours_forward", lambda: loss(query, key, temperature=TEMPERATURE))
    row.dense(lambda: symmetric((query @ key.T).float() / TEMPERATURE))
    row.train("open_clip", lambda: peers.clip_loss()(query, key, 1 / TEMPERATURE))
    row.train("sentence_transformers", lambda: peers.ranking_loss(query, key, TEMPERATURE))

    def cached() -> Tensor:  # it runs its backward itself, so nothing is left to differentiate
        return peers.cached_ranking_step(query, key, TEMPERATURE).requires_grad_()

    row.train("sentence_transformers_cached", cached)
    row.train("memeff", lambda: peers.memeff_loss(query, key, TEMPERATURE))
    row.train("inf_cl", lambda: peers.inf_cl_loss(query, key, TEMPERATURE))
    return row


def pair_ids(dtype: torch.dtype, n: int, d: int) -> Row:
    """Build a row in which about two pairs share each id."""
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    ids = torch.randint(0, max(1, n // 2), (n,))
    row = Row([query, key])
    row.products(query, key, 3)
    loss, plain = op("info_nce", "pair_ids"), Row([query, key])
    row.train("ours", lambda: loss(query, key, temperature=TEMPERATURE, pair_ids=ids))
    plain.train("info_nce", lambda: op("info_nce")(query, key, temperature=TEMPERATURE))
    row.baseline("info_nce", plain.contenders["info_nce"])

    def dense() -> Tensor:
        scores = (query @ key.T).float() / TEMPERATURE
        same = ids[:, None] == ids[None, :]
        same.fill_diagonal_(False)
        return symmetric(scores.masked_fill(same, -math.inf))

    row.dense(dense)
    return row


def label_smoothing(dtype: torch.dtype, n: int, d: int) -> Row:
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    row = Row([query, key])
    row.products(query, key, 3)
    loss = op("info_nce", "label_smoothing")
    row.train("ours", lambda: loss(query, key, temperature=TEMPERATURE, label_smoothing=SMOOTHING))
    row.dense(lambda: symmetric((query @ key.T).float() / TEMPERATURE, SMOOTHING))
    return row


def negatives(dtype: torch.dtype, n: int, d: int) -> Row:
    """Build a row with half as many shared hard negatives as pairs."""
    query, key, hard = unit(n, d, dtype), unit(n, d, dtype), unit(max(1, n // 2), d, dtype)
    row = Row([query, key, hard])
    row.products(query, torch.cat([key, hard]), 3)
    loss = op("info_nce", "negatives")
    row.train("ours", lambda: loss(query, key, temperature=TEMPERATURE, negatives=hard))

    def dense() -> Tensor:
        scores = (query @ torch.cat([key, hard]).T).float() / TEMPERATURE
        labels = torch.arange(n)
        return (F.cross_entropy(scores, labels) + F.cross_entropy(scores[:, :n].T, labels)) / 2

    row.dense(dense)
    return row


def sigmoid_loss(dtype: torch.dtype, n: int, d: int) -> Row:
    """Build a row with SigLIP's initial scale and bias."""
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    scale, bias = torch.tensor(math.log(10.0), requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    row = Row([query, key, scale, bias])
    row.products(query, key, 3, 4)
    loss = op("sigmoid_loss")
    row.train("ours", lambda: loss(query, key, logit_scale=scale, logit_bias=bias))
    row.train("ours_recomputed", lambda: loss(query, key, logit_scale=scale, logit_bias=bias, workspace_bytes=0))

    def dense() -> Tensor:
        scores = (query @ key.T).float() * scale.exp() + bias
        labels = 2 * torch.eye(n) - 1
        return -F.logsigmoid(labels * scores).sum() / n

    row.dense(dense)
    row.train("open_clip", lambda: peers.siglip_loss()(query, key, scale.exp().to(dtype), bias.to(dtype)))
    row.train("siglip_kernel", lambda: peers.siglip_kernel()(query, key, scale, bias))
    return row


def pair_scores(dtype: torch.dtype, n: int, d: int) -> Row:
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    row = Row([query, key])
    row.products(query, key, 1)
    scored = op("pair_scores")

    def ours() -> Tensor:
        result = scored(query, key, temperature=TEMPERATURE)
        return result.pmi.mean() + (result.rank_query + result.rank_key).float().mean() / n

    def dense() -> Tensor:
        scores = (query @ key.T).float() / TEMPERATURE
        target = scores.diagonal()
        rows, columns = scores.logsumexp(1), scores.logsumexp(0)
        pmi = math.log(n) + target - 0.5 * (rows + columns)
        ranks = (scores > target[:, None]).sum(1) + (scores > target).sum(0)
        return pmi.mean() + ranks.float().mean() / n

    row.forward("ours", ours)
    row.dense_forward(dense)
    return row


def row_logsumexp(dtype: torch.dtype, n: int, m: int, d: int) -> Row:
    """Build a row of queries against a bank of keys."""
    query, key = unit(n, d, dtype), unit(m, d, dtype)
    upstream = torch.rand(n)
    row = Row([query, key])
    row.products(query, key, 1, 3)
    lse = op("row_logsumexp")
    row.forward("ours_forward", lambda: (upstream * lse(query, key, temperature=TEMPERATURE)).mean())
    row.train("ours", lambda: (upstream * lse(query, key, temperature=TEMPERATURE)).mean())

    def dense() -> Tensor:
        return (upstream * ((query @ key.T).float() / TEMPERATURE).logsumexp(1)).mean()

    row.forward("eager_forward", dense)
    row.dense(dense)
    return row


BANK = {
    "small": {"n": 256, "m": 4096, "d": 256},
    "medium": {"n": 512, "m": 8192, "d": 512},
    "large": {"n": 1024, "m": 16384, "d": 512},
}
CASES = [
    Case(
        "info_nce",
        "contrastive",
        info_nce,
        SHAPES,
        [
            Target("ours", "products_3", MUST, GOAL),
            Target("ours_recomputed", "products_4", MUST, GOAL),
            Target("ours_forward", "products_1", FORWARD_MUST, FORWARD_GOAL),
        ],
        sweeps=SWEEPS,
    ),
    Case(
        "info_nce_pair_ids",
        "contrastive",
        pair_ids,
        SHAPES,
        [Target("ours", "info_nce", 1.05), Target("ours", "products_3")],
    ),
    Case(
        "info_nce_label_smoothing",
        "contrastive",
        label_smoothing,
        SHAPES,
        [Target("ours", "products_3", MUST, GOAL)],
        bfloat16=False,
    ),
    Case(
        "info_nce_negatives",
        "contrastive",
        negatives,
        SHAPES,
        [Target("ours", "products_3", MUST, GOAL)],
        bfloat16=False,
    ),
    Case(
        "sigmoid_loss",
        "contrastive",
        sigmoid_loss,
        SHAPES,
        [Target("ours", "products_3", MUST, GOAL), Target("ours_recomputed", "products_4", MUST, GOAL)],
    ),
    Case(
        "pair_scores",
        "contrastive",
        pair_scores,
        SHAPES,
        [Target("ours", "products_1", FORWARD_MUST, FORWARD_GOAL)],
    ),
    Case(
        "row_logsumexp",
        "contrastive",
        row_logsumexp,
        BANK,
        [
            Target("ours_forward", "products_1", FORWARD_MUST, FORWARD_GOAL),
            Target("ours", "products_3", MUST, GOAL),
        ],
        bfloat16=False,
    ),
]
