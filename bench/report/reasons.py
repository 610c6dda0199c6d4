"""REASONS: why a peer is faster or leaner than ours, where it is. `python -m bench report` prints them."""

from __future__ import annotations

from fnmatch import fnmatch

REASONS: dict[tuple[str, str, str], str] = {
    ("*", "torch_compile", "memory"): (
        "it keeps the scores in the compute dtype or computes them again; ours holds a block of float32 scores"
    ),
}
"""(case, peer, "time" or "memory"): the reason. * stands for anything, as in file names; the first entry that fits
counts."""


def reason_for(case: str, peer: str, quantity: str) -> str:
    """Return the reason, or that nobody has found it yet."""
    for (cases, peers, what), text in REASONS.items():
        if what == quantity and fnmatch(case, cases) and fnmatch(peer, peers):
            return text
    return "not explained yet"
