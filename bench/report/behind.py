"""where_we_lose: every case in which a peer is faster or leaner than ours, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ratios import ahead
from ..records import place_text
from .reasons import reason_for
from .tables import table

COLUMNS = ("case", "peer", "ours needs, of the peer's", "where", "reason")
NOWHERE = "Nowhere: no peer that was measured is faster or leaner."


def where_we_lose(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown: one line per case, peer and quantity, the worst place first.

    Args:
        rows: rows of any suite. Differences within the noise are none, and a peer whose results differ is no peer.
    """
    found: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
    for row in rows:
        for _, peer, quantity, ratio in ahead(row):
            inputs = "" if row["inputs"] == "random" else f" {row['inputs']}"
            where = f"{row['size']} {row['dtype']}{inputs} {place_text(row['machine'])}"
            found.setdefault((row["case"], peer.removesuffix("_forward"), quantity), []).append((ratio, where))
    if not found:
        return NOWHERE
    body = []
    for case, peer, quantity in sorted(found, key=lambda key: (key[2], key), reverse=True):  # time first
        places = found[case, peer, quantity]
        places.sort(reverse=True)
        span = sorted({f"{places[-1][0]:.2f}", f"{places[0][0]:.2f}"})
        needs = f"{'–'.join(span)}× {quantity}"
        body.append([f"`{case}`", peer, needs, "; ".join(w for _, w in places), reason_for(case, peer, quantity)])
    return table(COLUMNS, body)
