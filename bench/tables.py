"""Write the results of `python -m bench.kernels` as tables.

    python -m bench.tables bench/results/kernels.json                  # markdown
    python -m bench.tables bench/results/kernels.json --size large
    python -m bench.tables bench/results/kernels.json --plain          # aligned text
    python -m bench.tables bench/results/kernels.json --into docs/benchmarks.md

--into writes the tables between the two comments that mark the place in the file.

One line per claim: ours over its reference (the median of the rounds' ratios, the ratio of the best times in brackets),
the peers over the same reference, and what each takes of memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OURS = "ours"
COLUMNS = [
    "op",
    "shape",
    "dtype",
    "phase",
    "reference",
    "ours / reference",
    "target",
    "eager",
    "torch.compile",
    "best peer",
    "MB ours",
    "MB eager",
    "MB torch.compile",
    "MB peer",
]
NONE = "–"
MARKS = ("<!-- bench.tables writes from here -->", "<!-- to here -->")


def lines(row: Mapping[str, Any]) -> Iterable[list[str]]:
    """Yield the cells of each claim of a row."""
    timed = {name: c for name, c in row["contenders"].items() if c["median_s"] is not None}
    shape = " ".join(f"{name.upper() if len(name) == 1 else name}={size}" for name, size in row["shape"].items())
    for claim in row["claims"]:
        phase = row["contenders"][claim["contender"]]["phase"]
        same = {n: c for n, c in timed.items() if c["phase"] == phase and not n.startswith(OURS)}
        eager, compiled = (_of(same, name) for name in ("eager", "torch_compile"))
        peers = {n: c for n, c in same.items() if not n.startswith(("eager", "torch_compile"))}
        peer = min(peers, key=lambda name: peers[name]["median_s"], default=None)
        others = (eager, compiled, peers.get(peer))
        if claim["quantity"] == "memory":
            reference, ratios = f"memory of {claim['against']}", [NONE] * 3
        else:
            against = (row["floors"] | timed).get(claim["against"])
            reference = claim["against"]
            ratios = [f"{c['median_s'] / against['median_s']:.2f}" if c and against else NONE for c in others]
        if peer and ratios[2] != NONE:
            ratios[2] += f" {peer}"
        yield [
            f"`{row['case']}`{_variant(claim['contender'])}",
            shape,
            row["dtype"],
            phase,
            reference.replace("_", " "),
            _ratio(claim),
            NONE if claim["limit"] is None else f"≤ {claim['limit']:.2f}",
            *ratios,
            *(_megabytes(c) for c in (timed.get(claim["contender"]), *others)),
        ]


def bandwidths(row: Mapping[str, Any]) -> list[str]:
    """Return the bandwidth of every contender of a memory-bound row, in GB of the states per second."""
    everything = row["floors"] | {n: c for n, c in row["contenders"].items() if c["median_s"] is not None}
    speeds = [f"{name} {row['bytes_read'] / taken['median_s'] / 1e9:.1f}" for name, taken in everything.items()]
    shape = " ".join(f"{name.upper()}={size}" for name, size in row["shape"].items())
    return [f"`{row['case']}`", shape, row["dtype"], ", ".join(speeds)]


def sections(report: Mapping[str, Any]) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    """Yield title, head and lines of each table."""
    for family in dict.fromkeys(row["family"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["family"] == family]
        yield family, COLUMNS, [line for row in rows for line in lines(row)]
        bound = [row for row in rows if row["bytes_read"]]
        if bound:
            head = ["op", "shape", "dtype", "GB of the states per second"]
            yield f"{family}: bandwidth", head, [bandwidths(row) for row in bound]


def processor(machine: Mapping[str, Any]) -> str:
    """Return the threads and the processor of a machine, as a report describes it."""
    return f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''} of {machine['cpu']}"


def source(report: Mapping[str, Any]) -> str:
    """Describe the machine and the versions in one sentence."""
    of, peers = report["machine"], report["peers"]
    versions = [f"{name} {version or 'not installed'}" for name, version in peers.items()]
    return (
        f"{processor(of)} ({of['torch_cpu_capability']}), torch {of['versions']['torch']},"
        f" commit {', '.join(dict.fromkeys(row['commit'] for row in report['rows']))}; peers: {', '.join(versions)}."
    )


def missing(report: Mapping[str, Any]) -> list[str]:
    """Return the contenders that could not run, with reason and cases, one line per reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in report["rows"]:
        for name, contender in row["contenders"].items():
            if "missing" in contender:
                found.setdefault((name, contender["missing"]), []).append(row["case"])
    return [f"{name}: {why} ({', '.join(dict.fromkeys(where))})" for (name, why), where in found.items()]


def markdown(report: Mapping[str, Any]) -> str:
    """Return all tables as Markdown."""
    out = [source(report)]
    for title, head, table in sections(report):
        out += ["", f"**{title}**", "", _bars(head), _bars(["---"] * len(head)), *map(_bars, table)]
    for title, notes in (("Not measured", missing(report)), ("Differs from eager torch", differing(report))):
        if notes:
            out += ["", f"{title}:", "", *(f"- {note}" for note in notes)]
    return "\n".join(out)


def differing(report: Mapping[str, Any]) -> list[str]:
    """Return the contenders that differ from eager torch, one line per row."""
    rows = [row for row in report["rows"] if row["differing"]]
    return [f"{row['case']} {row['size']} {row['dtype']}: {', '.join(row['differing'])}" for row in rows]


def plain(report: Mapping[str, Any]) -> str:
    """Return all tables as aligned text."""
    out = [source(report)]
    for title, head, table in sections(report):
        widths = [max(len(line[place]) for line in [head, *table]) for place in range(len(head))]
        out += ["", title]
        out += [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in [head, *table]
        ]
    for title, notes in (("not measured", missing(report)), ("differs from eager torch", differing(report))):
        if notes:
            out += ["", title, *notes]
    return "\n".join(out)


def insert(file: Path, text: str) -> None:
    """Replace the text between the two marks of a file."""
    before, begin, rest = file.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise SystemExit(f"{file}: no {MARKS[0]} ... {MARKS[1]}")
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _of(contenders: Mapping[str, Any], name: str) -> Any:
    return contenders.get(name) or contenders.get(f"{name}_forward")


def _variant(contender: str) -> str:
    name = contender.removeprefix(OURS).removesuffix("_forward").strip("_").replace("_", " ")
    return f", {name}" if name else ""


def _ratio(claim: Mapping[str, Any]) -> str:
    if "ratio" not in claim:
        return NONE
    best = f" ({claim['of_minima']:.2f})" if "of_minima" in claim else ""
    return f"{claim['ratio']:.2f}{best}" if claim["ratio"] >= 0.1 else f"{claim['ratio']:.3f}{best}"


def _megabytes(contender: Mapping[str, Any] | None) -> str:
    peak = contender.get("peak_mb") if contender else None
    return NONE if peak is None else f"{peak:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file written by python -m bench.kernels")
    parser.add_argument("--size", nargs="+", help="only these sizes (default: all measured sizes)")
    parser.add_argument("--plain", action="store_true", help="aligned text instead of markdown")
    parser.add_argument("--into", type=Path, help="write the tables into this file")
    chosen = parser.parse_args()
    report = json.loads(chosen.results.read_text())
    if chosen.size:
        report["rows"] = [row for row in report["rows"] if row["size"] in chosen.size]
    if chosen.into:
        insert(chosen.into, markdown(report))
    else:
        print((plain if chosen.plain else markdown)(report))


if __name__ == "__main__":
    main()
