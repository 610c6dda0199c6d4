"""where_we_lose: every case in which a peer is faster or leaner than ours, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ratios import ahead
from ..records import place_text
from .reasons import reason_for
from .tables import table

COLUMNS = ("case", "size", "peer", "ours needs, of the peer's", "where", "reason")
NOWHERE = "Nowhere: no peer that was measured is faster or leaner."


def where_we_lose(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown: one line per case, size, peer and quantity, with the worst place first.

    Args:
        rows: rows of any suite. Differences within the noise are none, and a peer whose results differ is no peer.
    """
    found: dict[tuple[str, str, str, str], list[tuple[float, str]]] = {}
    for row in rows:
        for _, peer, quantity, ratio in ahead(row):
            inputs = "" if row["inputs"] == "random" else f" {row['inputs']}"
            where = f"{row['dtype']}{inputs} {place_text(row['machine'])}"
            key = (row["case"], peer.removesuffix("_forward"), quantity, row["size"])
            found.setdefault(key, []).append((ratio, where))
    if not found:
        return NOWHERE
    body = []
    for key in sorted(found, key=lambda key: (key[2], key[3], key), reverse=True):  # time first
        case, peer, quantity, size = key
        places = sorted(found[key], reverse=True)
        span = sorted({f"{places[-1][0]:.2f}", f"{places[0][0]:.2f}"})
        needs = f"{'–'.join(span)}× {quantity}"
        body.append([f"`{case}`", size, peer, needs, "; ".join(w for _, w in places), reason_for(*key)])
    return table(COLUMNS, body)
