"""readme_table: the README's table, a few rows of bench/results/kernels.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ratios import ratio_of, verdict_of
from ..records import kind_of, machine_text
from .tables import NONE, VERDICTS, limit_text, megabytes, others, speedup, table

ROWS = (
    ("linear_cross_entropy", "float32"),
    ("linear_cross_entropy_weighted", "float32"),
    ("info_nce", "float32"),
    ("sigmoid_loss", "float32"),
    ("mutual_information_nwj", "float32"),
    ("pair_scores", "float32"),
    ("linear_kl_forward", "float32"),
    ("cyclic_consistency", "float32"),
)
NO_ROWS = "No large size was measured."
HEADER = ("function", "time / bare products", "eager / ours", "torch.compile / ours", "best peer / ours", "peak MB")


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return one line: our first target of the row."""
    target = next(t for t in row["targets"] if t["run"] in ("ours", "ours_forward") and t["quantity"] == "time")
    ours = target["run"]
    phase = row["runs"][ours]["phase"]
    eager, compiled, best = others(row, phase)
    got = ratio_of(row, ours, target["against"])
    products = NONE
    if got is not None and target["against"].startswith("products"):
        products = f"{got.median:.2f} ({limit_text(target['must'])}){VERDICTS[verdict_of(row, target)]}"
    shape = " ".join(f"{name.upper()}={size}" for name, size in row["shape"].items() if len(name) == 1)
    memory = megabytes(row["runs"][ours])
    if eager and row["runs"][eager].get("peak_mb") is not None:
        memory += f" (eager {megabytes(row['runs'][eager])})"
    return [
        f"`{row['case']}` {shape} {row['dtype']}{', forward' if phase == 'forward' else ''}",
        products,
        speedup(row, eager, ours),
        speedup(row, compiled, ours),
        NONE if best is None else f"{speedup(row, best, ours)} {best}",
        memory,
    ]


def readme_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table and its machine as Markdown: the kind of machine with most of the table's rows, and of equals
    the one that was measured last.

    Args:
        rows: the rows of the suite `kernels`.
    """
    kinds: dict[tuple[Any, ...], dict[tuple[str, str], Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["case"], row["dtype"])
        if key in ROWS and row["size"] == "large" and row["inputs"] == "random":
            kinds.setdefault(kind_of(row["machine"]), {})[key] = row
    if not kinds:
        return NO_ROWS
    measured = max(
        kinds.values(), key=lambda found: (len(found), max(row["machine"]["date"] for row in found.values()))
    )
    chosen = [measured[key] for key in ROWS if key in measured]
    *others, last_commit = dict.fromkeys(row["machine"]["commit"] or "unknown" for row in chosen)
    commits = f"commits {', '.join(others)} and {last_commit}" if others else f"commit {last_commit}"
    here = chosen[0]["machine"]
    return "\n".join(
        [
            table(HEADER, map(cells, chosen)),
            "",
            f"Measured on {machine_text(here)}, torch {here['versions']['torch']}, {commits}.",
        ]
    )
