"""Reference for a training step: one sequence at a time through the model's own forward, with all logits and N x N
similarity matrices, in float64."""

from __future__ import annotations

import torch
from main_align.models.encoding import EncodedPair, PairEncoder
from torch.nn.functional import normalize

from main_kernels import reference


def logprobs(model, ids: list[int], span: tuple[int, int]) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Return log p of the tokens in `span`, each given all tokens before it."""
    logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    targets = torch.tensor(ids[span[0] : span[1]], device=logits.device)
    return logits[span[0] - 1 : span[1] - 1].log_softmax(-1).gather(1, targets[:, None])[:, 0]


def pooled(model, ids: list[int], span: tuple[int, int]) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Return the mean state over `span` of the sequence cut after it."""
    read = torch.tensor([ids[: span[1]]], device=model.device)
    return model.base_model(read, use_cache=False).last_hidden_state[0, span[0] :].mean(0)


def loss(model, head, tokenizer, texts, alignment, *, directions="both", alpha=0.5, groups=None):  # type: ignore[no-untyped-def]
    """Return the loss of one batch of (x, y, synthetic), by the definitions of terms.py and loss.py."""
    encoder = PairEncoder(tokenizer)
    model.set_attn_implementation("eager")
    encoded = [
        EncodedPair([], *(tokenizer(side, add_special_tokens=False).input_ids for side in (x, y))) for x, y, _ in texts
    ]
    sequences = [encoder.sequences(pair) for pair in encoded]
    synthetic = torch.tensor([bool(s) for *_, s in texts])
    columns = {}
    second, first = "second_span", "first_span"
    spans = (("y|x", 0, second), ("x", 0, first), ("x|y", 1, second), ("y", 1, first))
    for name, which, span in spans:
        columns[name] = [logprobs(model, pair[which].ids, getattr(pair[which], span)) for pair in sequences]

    def mean_nll(parts):  # type: ignore[no-untyped-def]
        kinds = []
        for mask in (~synthetic, synthetic):
            chosen = [part for part, take in zip(parts, mask.tolist(), strict=True) if take]
            kinds.append(-torch.cat(chosen).mean() if chosen else None)
        seed, written = kinds
        if seed is None or written is None:
            return seed if written is None else written
        return (1 - alpha) * seed + alpha * written

    total = 0.0
    if directions != "reverse":
        total = total + alignment.forward_weight * mean_nll(columns["y|x"])
    if directions != "forward":
        total = total + alignment.reverse_weight * mean_nll(columns["x|y"])
    if alignment.duality_gap_weight:
        x, y_given_x, y, x_given_y = (
            torch.stack([part.sum() for part in columns[n]]) for n in ("x", "y|x", "y", "x|y")
        )
        tokens = torch.tensor([len(a) + len(b) for a, b in zip(columns["x"], columns["y"], strict=True)])
        tokens = tokens.to(x.device)
        total = total + alignment.duality_gap_weight * ((x + y_given_x - y - x_given_y).abs() / tokens).mean()
    query, key = (
        torch.stack([pooled(model, pair[which].ids, pair[which].pool_span) for pair in sequences]) for which in (0, 1)
    )
    if head is not None:
        query, key = head(query, key)
    query, key = normalize(query, dim=1), normalize(key, dim=1)
    tau = alignment.contrastive_temperature
    if alignment.semantic_weight:
        total = total + alignment.semantic_weight * reference.info_nce(query, key, temperature=tau, pair_ids=groups)
    if alignment.intentional_weight:
        bound = reference.mutual_information(query, key, temperature=tau, estimator=alignment.mi_estimator)
        total = total - alignment.intentional_weight * bound
    if alignment.structural_weight:
        total = total + alignment.structural_weight * reference.cyclic_consistency(query, key)
    return total
