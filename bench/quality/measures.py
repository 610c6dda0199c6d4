"""Metrics of a model on held-out pairs, and the per-pair values behind them.

Everything is kept per pair, so that any number can be made again and resampled from the results file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from main_align.data.pairs import Pair
from main_align.models.encoding import PairEncoder
from main_align.models.forward import Forward
from main_align.scoring.batching import prepare_window
from main_align.scoring.columns import likelihood_scores
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..scoring import auc

Floats = NDArray[np.float64]
TEMPERATURE = 0.07  # of the semantic score, as in the scorer
BATCH_TOKENS = 2048
SIDES = ("log p(y|x)", "log p(y)", "log p(x|y)", "log p(x)")

BETTER = {  # metric: +1 where more is better, -1 where less is
    "nll_forward": -1,
    "nll_reverse": -1,
    "retrieval_xy": 1,
    "retrieval_yx": 1,
    "auc_mutual": 1,
    "auc_pmi_forward": 1,
    "auc_semantic": 1,
}


@dataclass
class Reading:
    """n pairs as one model read them."""

    logp: Floats  # [n, 4], nats, in the order of SIDES
    tokens_x: NDArray[np.int64]  # [n]
    tokens_y: NDArray[np.int64]  # [n]
    embed_x: NDArray[np.float32]  # [n, D], unit length, not centred
    embed_y: NDArray[np.float32]  # [n, D]

    def scores(self) -> dict[str, Floats]:
        return likelihood_scores(self.logp, self.tokens_x, self.tokens_y)


def read(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, bf16: bool = True
) -> Reading:
    """Both directions of every pair, in the scorer's own packed passes; weights stay in float32."""
    encoder, forward = PairEncoder(tokenizer), Forward(model.eval())
    longest = int(model.config.max_position_embeddings)
    window = prepare_window(pairs, encoder, max_length=longest, truncate=False, batch_tokens=BATCH_TOKENS)
    refused = [reason for reason in window.reason if reason]
    if refused:
        raise ValueError(f"cannot be read: {refused[0]}")
    logp = np.zeros((len(pairs), 4))
    embed_x, embed_y = np.zeros((2, len(pairs), forward.width), np.float32)
    for pack in window.micro_batches:
        rows = list(pack.rows)
        with _autocast(forward.device, bf16):
            sequences = [sequence for row in rows for sequence in encoder.sequences(window.encoded[row])]
            first, second, pooled = forward(sequences)
        logp[rows] = np.stack([second[0::2], first[1::2], second[1::2], first[0::2]], axis=1)
        embed_x[rows], embed_y[rows] = pooled[0::2], pooled[1::2]
    return Reading(logp, window.tokens_x, window.tokens_y, embed_x, embed_y)


def likeness(embed_x: NDArray[np.float32], embed_y: NDArray[np.float32]) -> Floats:
    """float64[n, n]: cosines of every instruction with every response, each side centred by its own mean."""
    return np.asarray(_unit(embed_x) @ _unit(embed_y).T, np.float64)


def semantic(likeness: Floats) -> Floats:
    """float64[n, n]: log N + S_ij - (row LSE + column LSE) / 2, of every pair that could be made."""
    scaled = likeness / TEMPERATURE
    rows, columns = (np.logaddexp.reduce(scaled, axis=axis, keepdims=True) for axis in (1, 0))
    return np.log(len(scaled)) + scaled - (rows + columns) / 2


def hits(likeness: Floats) -> NDArray[np.int64]:
    """int64[n]: 1 where a row's own column is its largest."""
    return (likeness.argmax(1) == np.arange(len(likeness))).astype(np.int64)


def held_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    hard: Sequence[Pair],
    partner: Sequence[int],
    head: nn.Module | None = None,
) -> dict[str, Any]:
    """Return the record of one model: lists with one entry per pair.

    `hard` are the pairs with their partners' responses, `head` the projection heads the model was trained with."""
    own, other = (read(model, tokenizer, which) for which in (pairs, hard))
    cosines = likeness(own.embed_x, own.embed_y)
    pmi = semantic(cosines)
    projected = {}
    if head is not None:
        with torch.inference_mode():
            x, y = head(torch.from_numpy(own.embed_x), torch.from_numpy(own.embed_y))
        through = likeness(x.numpy(), y.numpy())  # centring takes the heads' biases out
        projected = {"hit_xy_head": hits(through).tolist(), "hit_yx_head": hits(through.T).tolist()}
    return projected | {
        "logp": own.logp.round(4).tolist(),
        "logp_hard": other.logp.round(4).tolist(),
        "tokens": np.stack([own.tokens_x, own.tokens_y], 1).tolist(),
        "tokens_hard": np.stack([other.tokens_x, other.tokens_y], 1).tolist(),
        "semantic": pmi.diagonal().round(5).tolist(),
        "semantic_hard": pmi[np.arange(len(pmi)), list(partner)].round(5).tolist(),
        "hit_xy": hits(cosines).tolist(),
        "hit_yx": hits(cosines.T).tolist(),
    }


def summary(kept: dict[str, Any], rows: NDArray[np.int64] | None = None) -> dict[str, float]:
    """The metrics of BETTER from what `held_out` kept, of all pairs or of `rows` of them.

    NLLs are nats per token over all tokens; retrieval is among all held-out pairs.
    """
    columns = {name: np.array(values)[rows if rows is not None else slice(None)] for name, values in kept.items()}
    tokens_x, tokens_y = columns["tokens"].T
    own = likelihood_scores(columns["logp"], tokens_x, tokens_y)
    other = likelihood_scores(columns["logp_hard"], *columns["tokens_hard"].T)
    through_head = {
        f"retrieval_{d}_head": float(columns[f"hit_{d}_head"].mean())
        for d in ("xy", "yx")
        if f"hit_{d}_head" in columns
    }
    return through_head | {
        "nll_forward": float(-columns["logp"][:, 0].sum() / tokens_y.sum()),
        "nll_reverse": float(-columns["logp"][:, 2].sum() / tokens_x.sum()),
        "retrieval_xy": float(columns["hit_xy"].mean()),
        "retrieval_yx": float(columns["hit_yx"].mean()),
        "auc_mutual": auc(own["mutual"], other["mutual"]),
        "auc_pmi_forward": auc(own["pmi_forward"], other["pmi_forward"]),
        "auc_semantic": auc(columns["semantic"], columns["semantic_hard"]),
    }


def _unit(states: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = states - states.mean(0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def _autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
