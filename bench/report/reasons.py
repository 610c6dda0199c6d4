"""REASONS: why a peer is faster or leaner than ours, where it is. `python -m bench report` prints them."""

from __future__ import annotations

from fnmatch import fnmatch

MKL = "MKL keeps up to 5 MB per thread for its products, which the warm-up of a compiled peer had allocated"
PLANES = "16-bit gradients are summed in float32, which takes 2 bytes per entry beside the result"

REASONS: dict[tuple[str, str, str, str], str] = {
    ("score", "padded", "time", "[0-9]*"): (
        "pairs of one length need no padding, so it runs the same products; ours also compares embeddings"
    ),
    ("score", "data_juicer", "time", "*"): (
        "no reverse direction and no embeddings: three quarters of the tokens where both sides are equally long"
    ),
    ("*", "*", "time", "small"): "a call takes milliseconds, and preparing it in Python is part of that",
    ("linear_cross_entropy*", "*", "time", "*"): "two chunks read and write the head's gradient twice",
    ("linear_kl*", "*", "memory", "large"): (
        "chunks of both score matrices have 768 rows, which are all tokens of the case: products of fewer rows are"
        " slower, and more tokens take no more memory"
    ),
    ("segment_pool*", "*", "memory", "*"): (
        "the case's own loss, a [B, D] product in eager torch, which is fused for the peer; for attention also the"
        " query's gradient by segment, [B, D]"
    ),
    ("*", "*", "memory", "small"): MKL,
    ("row_logsumexp", "*", "memory", "*"): MKL,
    ("pair_scores", "*", "memory", "*"): MKL,
    ("info_nce*", "*", "memory", "*"): f"{MKL}; {PLANES}",
    ("linear_cross_entropy*", "*", "memory", "*"): f"{PLANES}; {MKL}",
    ("sequence_logprobs", "*", "memory", "*"): f"{MKL}; {PLANES}",
}
"""(case, peer, "time" or "memory", size): the reason. * stands for anything, as in file names; the first that fits
counts."""


def reason_for(case: str, peer: str, quantity: str, size: str) -> str:
    """Return the reason, or that nobody has found it yet."""
    for patterns, text in REASONS.items():
        if all(fnmatch(value, pattern) for value, pattern in zip((case, peer, quantity, size), patterns, strict=True)):
            return text
    return "not explained yet"
