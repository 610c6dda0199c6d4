"""markdown, plain and inserted: the tables of timings. One line is one target of one row of bench/records.py.

Ratios come from the samples (bench/ratios.py); no time is shown, because times of a shared machine mean little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..ratios import Ratio, measured, noise_of, ratio_of, verdict_of
from ..records import machine_text, place_text, shape_text

COLUMNS = [
    "case",
    "shape",
    "dtype",
    "on",
    "reference",
    "ours / reference",
    "must",
    "goal",
    "eager / ours",
    "torch.compile / ours",
    "best peer / ours",
    "MB ours",
    "MB eager",
    "MB best peer",
]
NONE = "–"
VERDICTS = {"goal": " ✓✓", "must": " ✓", "noise": " ≈", "missed": " ✗", None: ""}
"""goal met; required limit met; nearer to the limit than the same code timed twice; missed."""


def lines(row: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of each target of a row."""
    for target in row["targets"]:
        ours, against = row["runs"].get(target["run"], {}), target["against"]
        eager, compiled, best = others(row, ours.get("phase"))
        memory = target["quantity"] == "memory"
        yield [
            f"`{row['case']}`{variant(target['run'], ours.get('phase'))}",
            shape_text(row) + inputs_text(row),
            row["dtype"],
            place_text(row["machine"]),
            ("memory of " if memory else "") + against.replace("_", " "),
            ratio_text(ratio_of(row, target["run"], against, target["quantity"])) + VERDICTS[verdict_of(row, target)],
            limit_text(target["must"]),
            limit_text(target["goal"]),
            *(NONE if memory else speedup(row, name, target["run"]) for name in (eager, compiled)),
            NONE if memory or best is None else f"{speedup(row, best, target['run'])} {best.removesuffix('_forward')}",
            *(megabytes(row["runs"].get(name or "")) for name in (target["run"], eager, best)),
        ]


def inputs_text(row: Mapping[str, Any]) -> str:
    """Return what a row was measured on, unless it is random numbers: the states of a model, or the texts of a file."""
    if row["inputs"] == "random":
        return ""
    return f", {row['inputs']} states" if row["suite"] == "kernels" else f", {row['inputs']}"


def others(row: Mapping[str, Any], phase: str | None) -> tuple[str | None, str | None, str | None]:
    """Return the names of eager torch, torch.compile and the fastest other peer of a phase; None if not measured.

    Peers whose results differ are no peers.
    """
    names = [n for n, run in measured(row, "peer") if run["phase"] == phase and n not in row["differing"]]

    def of(name: str) -> str | None:
        return next((n for n in names if n in (name, f"{name}_forward")), None)

    eager, compiled = of("eager"), of("torch_compile")
    rest = [name for name in names if name not in (eager, compiled)]
    best = min(rest, key=lambda name: sorted(row["runs"][name]["samples_s"]), default=None)
    return eager, compiled, best


def speedup(row: Mapping[str, Any], peer: str | None, ours: str) -> str:
    """Return how many times as long a peer takes, "none" if the difference is within the noise."""
    got = ratio_of(row, peer, ours) if peer else None
    if got is None:
        return NONE
    noise = noise_of(row)
    if noise is not None and abs(got.median - 1) <= noise:
        return "none"
    return f"{got.median:.2f}×{' ✗' if got.median < 1 else ''}"


def ratio_text(got: Ratio | None) -> str:
    """Return a ratio with its quartiles over the rounds."""
    if got is None:
        return NONE
    digits = 2 if got.median >= 0.1 else 3
    spread = "" if got.low == got.high else f" ({got.low:.{digits}f}–{got.high:.{digits}f})"
    return f"{got.median:.{digits}f}{spread}"


def limit_text(limit: float | None) -> str:
    """Return a limit as "≤ 1.06"."""
    return NONE if limit is None else f"≤ {limit:.2f}"


def megabytes(run: Mapping[str, Any] | None) -> str:
    """Return the peak memory of a run in 10^6 bytes."""
    return NONE if not run or run.get("peak_mb") is None else f"{run['peak_mb']:.0f}"


def variant(run: str, phase: str | None) -> str:
    """Return what tells one of our runs from the others of its row."""
    name = run.removeprefix("ours").removesuffix("_forward").strip("_").replace("_", " ")
    return "".join(f", {part}" for part in (name, "forward" if phase == "forward" else "") if part)


def by_family(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Group rows by family; rows that differ only by machine follow one another."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["family"], []).append(row)

    def place(row: Mapping[str, Any], group: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
        cases = list(dict.fromkeys(r["case"] for r in group))
        sizes = list(dict.fromkeys(r["size"] for r in group))
        return (
            cases.index(row["case"]),
            sizes.index(row["size"]),
            -("32" in row["dtype"]),
            row["inputs"] != "random",
            place_text(row["machine"]),
        )

    return {name: sorted(group, key=lambda row, group=group: place(row, group)) for name, group in found.items()}


def sources(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Describe each machine with the versions and the commits of its rows, one sentence each."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        here = row["machine"]
        installed = [f"{name} {version}" for name, version in (here.get("peers") or {}).items() if version]
        bfloat16 = "" if here.get("bfloat16_instructions", True) else ", no bfloat16 instructions"
        where = f"{machine_text(here)}{bfloat16}, torch {here['versions']['torch']}"
        found.setdefault(where + "".join(f", {peer}" for peer in installed), {})[here["commit"] or "unknown"] = None
    return [
        f"{where}; commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}." for where, commits in found.items()
    ]


def missing(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the runs that could not be measured, with reason and cases, one line per reason."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        for name, run in row["runs"].items():
            if "missing" in run:
                found.setdefault((name, run["missing"]), {})[row["case"]] = None
    return [f"{name}: {why} ({', '.join(cases)})" for (name, why), cases in found.items()]


def differing(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the runs whose results differ from eager torch's, one line per row."""
    return [
        f"{row['case']} {row['size']} {row['dtype']} {place_text(row['machine'])}: {', '.join(row['differing'])}"
        for row in rows
        if row["differing"]
    ]


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


def inserted(page: str, marks: tuple[str, str], text: str) -> str:
    """Return a page with a text between two marks.

    Args:
        page: the content of the page.
        marks: the comments before and after the place.
        text: what replaces everything between them.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"no {marks[0]} ... {marks[1]}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of all rows as Markdown, one per family, and what is missing or differs."""
    out = [f"- {text}" for text in sources(rows)]
    for family, group in by_family(rows).items():
        out += ["", f"### {family.capitalize()}", "", table(COLUMNS, (line for row in group for line in lines(row)))]
    for title, notes in (("Not measured", missing(rows)), ("Differs from eager torch", differing(rows))):
        if notes:
            out += ["", f"{title}:", "", *(f"- {note}" for note in notes)]
    return "\n".join(out)


def plain(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of all rows as aligned text."""
    out = sources(rows)
    for family, group in by_family(rows).items():
        body = [COLUMNS, *(line for row in group for line in lines(row))]
        widths = [max(len(line[place]) for line in body) for place in range(len(COLUMNS))]
        out += ["", family]
        out += ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in body]
    for title, notes in (("not measured", missing(rows)), ("differs from eager torch", differing(rows))):
        if notes:
            out += ["", title, *notes]
    return "\n".join(out)
