"""Write the README's table: a few rows of bench/results/kernels.json.

Usage:
    python -m bench.summary            # write the table into README.md
    python -m bench.summary --check    # exit with 1 if README.md differs
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.tables import processor

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results" / "kernels.json"
START, END = "<!-- bench.summary writes from here -->", "<!-- to here -->"
ROWS = (
    ("linear_cross_entropy", "float32"),
    ("linear_cross_entropy", "bfloat16"),
    ("info_nce", "float32"),
    ("info_nce", "bfloat16"),
    ("sigmoid_loss", "bfloat16"),
    ("pair_scores", "bfloat16"),
    ("linear_kl_forward", "float32"),
    ("cyclic_consistency", "float32"),
)
HEADER = ("function", "time / bare products", "eager / ours", "torch.compile / ours", "best peer / ours", "peak MB")


def cells(row: Mapping[str, Any]) -> list[str]:
    """Format one measured row.

    Args:
        row: an entry of ``rows`` in kernels.json.

    Returns:
        One cell per column. ✗ marks a missed target and a competitor that is faster than ours.
    """
    claim = next(c for c in row["claims"] if c["contender"] in ("ours", "ours_forward") and c["quantity"] == "time")
    ours = row["contenders"][claim["contender"]]
    others = {
        name.removesuffix("_forward"): contender
        for name, contender in row["contenders"].items()
        if contender["median_s"] is not None and not name.startswith("ours") and contender["phase"] == ours["phase"]
    }
    eager, compiled = others.pop("eager", None), others.pop("torch_compile", None)
    peer = min(others, key=lambda name: others[name]["median_s"], default=None)
    against_products = "–"
    if claim["against"].startswith("products"):
        against_products = f"{claim['ratio']:.2f} (≤ {claim['limit']:.2f}){' ✗' * (not claim['met'])}"
    shape = " ".join(f"{name.upper()[:1]}={size}" for name, size in row["shape"].items() if len(name) == 1)
    phase = "" if ours["phase"] == "forward+backward" else ", forward"
    return [
        f"`{row['case']}` {shape} {row['dtype']}{phase}",
        against_products,
        _speedup(eager, ours),
        _speedup(compiled, ours),
        "–" if peer is None else f"{_speedup(others[peer], ours)} {peer}",
        _memory(ours, eager),
    ]


def table() -> str:
    """Build the table from bench/results/kernels.json.

    Returns:
        The table and the machine, as Markdown.
    """
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    measured = {(row["case"], row["dtype"]): row for row in report["rows"] if row["size"] == "large"}
    rows = [HEADER, ["---"] * len(HEADER), *(cells(measured[key]) for key in ROWS)]
    machine = report["machine"]
    commits = list(dict.fromkeys(measured[key]["commit"] for key in ROWS))
    return "\n".join(
        [
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"Measured on {processor(machine)} ({machine['torch_cpu_capability']}), torch"
            f" {machine['versions']['torch']}, {'commits' if len(commits) > 1 else 'commit'} {' and '.join(commits)}.",
        ]
    )


def _speedup(other: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> str:
    if other is None:
        return "–"
    ratio = other["median_s"] / ours["median_s"]
    return f"{ratio:.2f}×{' ✗' * (ratio < 1)}"


def _memory(ours: Mapping[str, Any], eager: Mapping[str, Any] | None) -> str:
    peak = f"{ours['peak_mb']:.0f}"
    return peak if eager is None or eager.get("peak_mb") is None else f"{peak} (eager {eager['peak_mb']:.0f})"


def main() -> None:
    """Write or check the table between the two comments of README.md."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    updated = f"{before}{START}\n{table()}\n{END}{after}"
    if sys.argv[1:] == ["--check"]:
        raise SystemExit(0 if updated == text else "README.md: run python -m bench.summary")
    README.write_text(updated, encoding="utf-8")


if __name__ == "__main__":
    main()
