"""REASONS: why a peer is faster or leaner than ours, where it is. `python -m bench report` prints them."""

from __future__ import annotations

from fnmatch import fnmatch

REASONS: dict[tuple[str, str, str, str], str] = {
    ("score", "padded", "time", "[0-9]*"): (
        "pairs of one length need no padding, so it runs the same products; ours also compares embeddings"
    ),
    ("*", "*", "time", "small"): "a call takes milliseconds, and preparing it in Python is part of that",
    ("linear_cross_entropy*", "*", "memory", "*"): (
        "about 4 MB beside the scores whatever the size, and float32 sums of 16-bit gradients"
    ),
}
"""(case, peer, "time" or "memory", size): the reason. * stands for anything, as in file names; the first that fits
counts."""


def reason_for(case: str, peer: str, quantity: str, size: str) -> str:
    """Return the reason, or that nobody has found it yet."""
    for patterns, text in REASONS.items():
        if all(fnmatch(value, pattern) for value, pattern in zip((case, peer, quantity, size), patterns, strict=True)):
            return text
    return "not explained yet"
