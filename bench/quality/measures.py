"""Metrics of a model on held-out pairs, and the per-pair values behind them.

The results file contains the values per pair, so every metric can be recomputed and resampled.
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
from main_align.scoring.prefetch import Prefetch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Floats = NDArray[np.float64]
TEMPERATURE = 0.07  # of the semantic score, the default of Scorer
BATCH_TOKENS = 2048
SIDES = ("log p(y|x)", "log p(y)", "log p(x|y)", "log p(x)")

BETTER = {  # metric: +1 if higher is better, -1 if lower is better
    "nll_forward": -1,
    "nll_reverse": -1,
    "retrieval_xy": 1,
    "retrieval_yx": 1,
    "auc_mutual": 1,
    "auc_pmi_forward": 1,
    "auc_semantic": 1,
}


def auc(aligned: Sequence[float], other: Sequence[float]) -> float:
    """Return the probability that an aligned pair scores higher than a shuffled one; a tie counts half."""
    a, b = np.array(aligned)[:, None], np.array(other)[None, :]
    return float((a > b).mean() + 0.5 * (a == b).mean())


@dataclass
class ModelOutputs:
    """Log-likelihoods and embeddings of n pairs from one model."""

    logp: Floats  # [n, 4], nats, in the order of SIDES
    tokens_x: NDArray[np.int64]  # [n]
    tokens_y: NDArray[np.int64]  # [n]
    embed_x: NDArray[np.float32]  # [n, D], unit length, not centred
    embed_y: NDArray[np.float32]  # [n, D]

    def scores(self) -> dict[str, Floats]:
        """Return the likelihood scores of every pair."""
        return likelihood_scores(self.logp, self.tokens_x, self.tokens_y)


def run_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, bf16: bool = True
) -> ModelOutputs:
    """Run both directions of every pair in the scorer's packed passes. Weights stay in their dtype."""
    encoder, forward = PairEncoder(tokenizer), Forward(model.eval())
    longest = int(model.config.max_position_embeddings)
    steps = prepare_window(pairs, encoder, max_length=longest, truncate=False, batch_tokens=BATCH_TOKENS)
    window = Prefetch(steps).result()
    problems = [reason for reason in window.reason if reason]
    if problems:
        raise ValueError(f"pairs cannot be scored: {problems[0]}")
    logp = np.zeros((len(pairs), 4))
    embed_x, embed_y = np.zeros((2, len(pairs), forward.width), np.float32)
    for micro_batch in window.micro_batches:
        rows = list(micro_batch.rows)
        with _autocast(forward.device, bf16):
            sequences = [sequence for row in rows for sequence in encoder.sequences(window.encoded[row])]
            logps, pooled = forward(sequences)
        logp[rows] = [
            [f.second.sum(), r.first.sum(), r.second.sum(), f.first.sum()]
            for f, r in zip(logps[0::2], logps[1::2], strict=True)
        ]
        embed_x[rows], embed_y[rows] = pooled[0::2], pooled[1::2]
    return ModelOutputs(logp, window.tokens_x, window.tokens_y, embed_x, embed_y)


def cosine_matrix(embed_x: NDArray[np.float32], embed_y: NDArray[np.float32]) -> Floats:
    """Return float64[n, n], the cosines of every instruction with every response. Each side is centred by its mean."""
    return np.asarray(_unit(embed_x) @ _unit(embed_y).T, np.float64)


def semantic_matrix(cosines: Floats) -> Floats:
    """Return float64[n, n], the semantic score log N + S_ij - (row LSE + column LSE) / 2 of every combination."""
    scaled = cosines / TEMPERATURE
    rows, columns = (np.logaddexp.reduce(scaled, axis=axis, keepdims=True) for axis in (1, 0))
    return np.log(len(scaled)) + scaled - (rows + columns) / 2


def top1_hits(cosines: Floats) -> NDArray[np.int64]:
    """Return int64[n], 1 if the diagonal is the largest entry of the row."""
    return (cosines.argmax(1) == np.arange(len(cosines))).astype(np.int64)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    hard: Sequence[Pair],
    partner: Sequence[int],
    head: nn.Module | None = None,
) -> dict[str, Any]:
    """Evaluate one model on held-out pairs.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        pairs: the held-out pairs.
        hard: the same instructions with their partners' responses.
        partner: row of each pair's partner.
        head: projection heads that the model was trained with. Default: none.

    Returns:
        Lists with one entry per pair.
    """
    true, false = (run_model(model, tokenizer, each) for each in (pairs, hard))
    cosines = cosine_matrix(true.embed_x, true.embed_y)
    pmi = semantic_matrix(cosines)
    projected = {}
    if head is not None:
        with torch.inference_mode():
            x, y = head(torch.from_numpy(true.embed_x), torch.from_numpy(true.embed_y))
        head_cosines = cosine_matrix(x.numpy(), y.numpy())  # centring removes the heads' biases
        projected = {
            "hit_xy_head": top1_hits(head_cosines).tolist(),
            "hit_yx_head": top1_hits(head_cosines.T).tolist(),
        }
    return projected | {
        "logp": true.logp.round(4).tolist(),
        "logp_hard": false.logp.round(4).tolist(),
        "tokens": np.stack([true.tokens_x, true.tokens_y], 1).tolist(),
        "tokens_hard": np.stack([false.tokens_x, false.tokens_y], 1).tolist(),
        "semantic": pmi.diagonal().round(5).tolist(),
        "semantic_hard": pmi[np.arange(len(pmi)), list(partner)].round(5).tolist(),
        "hit_xy": top1_hits(cosines).tolist(),
        "hit_yx": top1_hits(cosines.T).tolist(),
    }


def summary(record: dict[str, Any], rows: NDArray[np.int64] | None = None) -> dict[str, float]:
    """Return the metrics of BETTER.

    NLLs are nats per token over all tokens. Retrieval is among all held-out pairs.

    Args:
        record: the output of `evaluate`.
        rows: pairs to use. Default: all.
    """
    columns = {name: np.array(values)[rows if rows is not None else slice(None)] for name, values in record.items()}
    tokens_x, tokens_y = columns["tokens"].T
    true = likelihood_scores(columns["logp"], tokens_x, tokens_y)
    false = likelihood_scores(columns["logp_hard"], *columns["tokens_hard"].T)
    head_retrieval = {
        f"retrieval_{d}_head": float(columns[f"hit_{d}_head"].mean())
        for d in ("xy", "yx")
        if f"hit_{d}_head" in columns
    }
    return head_retrieval | {
        "nll_forward": float(-columns["logp"][:, 0].sum() / tokens_y.sum()),
        "nll_reverse": float(-columns["logp"][:, 2].sum() / tokens_x.sum()),
        "retrieval_xy": float(columns["hit_xy"].mean()),
        "retrieval_yx": float(columns["hit_yx"].mean()),
        "auc_mutual": auc(true["mutual"], false["mutual"]),
        "auc_pmi_forward": auc(true["pmi_forward"], false["pmi_forward"]),
        "auc_semantic": auc(columns["semantic"], columns["semantic_hard"]),
    }


def _unit(states: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = states - states.mean(0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def _autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
