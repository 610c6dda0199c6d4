"""Cases of the language-model head: log-probabilities of tokens and sequences, and the training loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import peers
from ..inputs import hidden_states
from .case import HEADS, Case, Row, Sweep, Target, head, op

SMOOTHING, Z_LOSS = 0.1, 1e-4
SHAPES = {
    "small": {"t": 256, "d": 256, "v": 8192},
    "medium": {"t": 512, "d": 512, "v": 16384},
    "large": {"t": 1024, "d": 512, "v": 32000},
    "large-wide": {"t": 1024, "d": 1024, "v": 32000},
    **{name: {"t": 256 if shape["d"] > 1000 else 1024, **shape} for name, shape in HEADS.items()},
}
MUST, GOAL = {"float32": 1.10, "bfloat16": 1.15}, {"float32": 1.05, "bfloat16": 1.08}
SWEEPS = {
    "t": Sweep({"d": 256, "v": 8192}, (256, 512, 1024, 2048, 4096), time=1, memory=0),
    "d": Sweep({"t": 512, "v": 8192}, (64, 128, 256, 512, 1024), time=1, memory=0),
    "v": Sweep({"t": 512, "d": 256}, (4096, 8192, 16384, 32768, 65536), time=1, memory=1),
}


def operands(dtype: torch.dtype, t: int, d: int, v: int, inputs: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return states and head as leaves, and targets: at random, or of SmolLM2 reading real pairs."""
    if inputs == "random":
        return *head(t, d, v, dtype), torch.randint(0, v, (t,))
    hidden, weight, targets = hidden_states(t)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def linear_cross_entropy(dtype: torch.dtype, t: int, d: int, v: int, inputs: str = "random") -> Row:
    hidden, weight, targets = operands(dtype, t, d, v, inputs)
    row = Row([hidden, weight])
    row.products(hidden, weight, 1, 3)
    loss, logprobs = op("linear_cross_entropy"), op("token_logprobs")
    row.train("ours", lambda: loss(hidden, weight, targets))
    row.train("ours_token_logprobs", lambda: -logprobs(hidden, weight, targets).mean())
    row.forward("ours_forward", lambda: -logprobs(hidden, weight, targets).mean())
    row.dense(lambda: F.cross_entropy((hidden @ weight.T).float(), targets))
    row.train("torch_linear_cross_entropy", lambda: peers.torch_linear_cross_entropy()(hidden, weight, targets))

    def chunked() -> Tensor:
        # Without options, torch's function stores the logits. Its default chunks have so few rows that it is many times
        # slower than eager.
        loss = peers.torch_linear_cross_entropy()
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)
        return loss(hidden, weight, targets, options=options)

    row.train("torch_linear_cross_entropy_chunked", chunked)
    row.train("cut_cross_entropy", lambda: peers.cut_cross_entropy()(hidden, weight, targets), compiled=True)
    row.train("liger", lambda: peers.liger()(hidden, weight, targets))
    row.train("quack", lambda: peers.quack()(hidden, weight, targets))
    return row


def weighted(dtype: torch.dtype, t: int, d: int, v: int) -> Row:
    """Build a row with token weights (their sum is T), label smoothing and z-loss."""
    hidden, weight = head(t, d, v, dtype)
    targets, weights = torch.randint(0, v, (t,)), torch.rand(t)
    weights *= t / weights.sum()
    row = Row([hidden, weight])
    row.products(hidden, weight, 3)
    loss = op("linear_cross_entropy", "token_weights", "label_smoothing", "z_loss")
    options = {"token_weights": weights, "label_smoothing": SMOOTHING, "z_loss": Z_LOSS}
    row.train("ours", lambda: loss(hidden, weight, targets, **options))

    def dense() -> Tensor:
        logits = (hidden @ weight.T).float()
        entropy = F.cross_entropy(logits, targets, reduction="none", label_smoothing=SMOOTHING)
        return (weights * (entropy + Z_LOSS * logits.logsumexp(1) ** 2)).mean()

    row.dense(dense)
    return row


def sequence_logprobs(dtype: torch.dtype, t: int, d: int, v: int) -> Row:
    """Build a row with one upstream gradient per segment of 64 tokens, known only in the backward."""
    hidden, weight = head(t, d, v, dtype)
    targets, offsets = torch.randint(0, v, (t,)), torch.arange(0, t + 1, 64)
    upstream, segment = torch.rand(t // 64), torch.arange(t) // 64
    row = Row([hidden, weight])
    row.products(hidden, weight, 3, 4)
    logprobs = op("sequence_logprobs")
    row.train("ours", lambda: (upstream * logprobs(hidden, weight, targets, offsets)).sum())
    row.train(
        "ours_recomputed", lambda: (upstream * logprobs(hidden, weight, targets, offsets, workspace_bytes=0)).sum()
    )

    def dense() -> Tensor:
        tokens = -F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
        return (upstream * tokens.new_zeros(t // 64).index_add(0, segment, tokens)).sum()

    row.dense(dense)
    return row


CASES = [
    Case(
        "linear_cross_entropy",
        "likelihood",
        linear_cross_entropy,
        SHAPES,
        [
            Target("ours", "products_3", MUST, GOAL),
            Target("ours_token_logprobs", "products_3", MUST, GOAL),
            Target("ours_forward", "products_1", MUST, GOAL),
        ],
        sweeps=SWEEPS,
    ),
    Case("linear_cross_entropy_weighted", "likelihood", weighted, SHAPES, [Target("ours", "products_3", MUST, GOAL)]),
    Case(
        "sequence_logprobs",
        "likelihood",
        sequence_logprobs,
        SHAPES,
        [Target("ours", "products_3", MUST, GOAL), Target("ours_recomputed", "products_4", MUST, GOAL)],
    ),
]
