"""make_report and table: the results file and the printed table of a GPU run, from its logs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..cases.device import CASES
from ..ratios import ahead, ratio_of
from ..records import SCHEMA, shape_text
from ..report.tables import plain, ratio_text

Record = dict[str, Any]
TARGETS = {case.name: case.targets for case in CASES}


def make_report(records: Iterable[Record], steps: list[Record], commit: str | None = None) -> Record:
    """Combine the records of one or more logs.

    Args:
        records: as read by `read_log`.
        steps: as read by `read_steps`.
        commit: of the code, for logs of a copy without git.

    Returns:
        JSON-ready: rows in the format of bench/records.py, each with the states of the GPU, and beside them the steps,
        the checks, and what was skipped. A run also has `host_s`, the seconds that the host took for each sample, and
        `held`, whether the device was held back until the host had enqueued the call.
    """
    report: Record = {"schema": SCHEMA, "steps": steps, "checks": [], "rows": [], "skipped": []}
    rows: dict[str, Record] = {}
    machine: Record = {}
    for record in records:
        kind = record["kind"]
        if kind == "machine":
            machine = {name: value for name, value in record.items() if name != "kind"}
            machine["commit"] = machine["commit"] or commit
        elif kind == "check":
            report["checks"].append({name: value for name, value in record.items() if name != "kind"})
        elif kind == "skipped":
            report["skipped"].append(record["what"])
        elif kind == "row":
            rows.setdefault(record["row"], _row(record, machine))
        elif "row" in record:
            _add(rows[record["row"]], kind, record)
    report["rows"] = list(rows.values())
    return report


def read_steps(folder: Path) -> list[Record]:
    """Read the steps of device.sh from its folder: exit status, seconds, last lines, and the counts of its tests.

    The status is "missing" if the tool is not installed, "out of time" if the step did not begin, and 124 after a
    timeout.
    """
    steps: list[Record] = []
    file = folder / "steps.tsv"
    for line in file.read_text().splitlines() if file.exists() else ():
        name, status, seconds = line.split("\t")
        log, counts = folder / f"{name}.log", folder / f"{name}.xml"
        steps.append({"step": name, "exit": status, "seconds": int(seconds)})
        if log.exists():
            steps[-1]["end"] = log.read_text(errors="replace").splitlines()[-4:]
        suite = _counts(counts)
        if suite is not None:
            steps[-1] |= {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    return steps


def _counts(file: Path) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(file).getroot().find("testsuite")
    except (OSError, ElementTree.ParseError):  # no tests, or killed while they wrote it
        return None


def table(report: Mapping[str, Any]) -> str:
    """Return failed checks, the table of targets, host times, rows without targets, peers ahead and what is missing."""
    lines = [f"CHECK FAILED {c['op']} {c['dtype']}: {c['failure']}" for c in report["checks"] if c["failure"]]
    lines.append(plain([row for row in report["rows"] if row["targets"]]))
    for row in report["rows"]:
        what = f"{row['case']} {shape_text(row)}"
        floor = next((name for name, run in row["runs"].items() if run["role"] == "floor"), None)
        for name, run in row["runs"].items():
            if "host_s" in run and run["role"] == "ours":
                lines.append(f"{what} {name}: host {statistics.median(run['host_s']) * 1e6:.0f} us")
            if not row["targets"] and floor and name != floor:
                got = ratio_text(ratio_of(row, name, floor))
                lines.append(f"{what} {name}: {run.get('missing') or f'{got} x {floor}'}")
        lines += [f"{what} AHEAD OF US: {peer}, {quantity} {by:.2f}" for _, peer, quantity, by in ahead(row)]
    return "\n".join(lines + [f"not measured: {what}" for what in report["skipped"]])


def _row(record: Record, machine: Record) -> Record:
    """Return a row without samples; its runs are listed before they are measured."""
    runs: Record = {name: {"role": "floor", "phase": "floor"} for name in record["floors"]}
    for name, phase in record["phases"].items():
        runs[name] = {"role": "ours" if name.startswith("ours") else "peer", "phase": phase}
    return {
        "suite": "device",
        "case": record["case"],
        "family": "device",
        "size": " ".join(f"{name}={size}" for name, size in record["shape"].items()),
        "shape": record["shape"],
        "dtype": record["dtype"],
        "inputs": "random",
        "machine": machine,
        "runs": runs,
        "targets": [target.in_row(record["dtype"]) for target in TARGETS.get(record["case"], ())],
        "differing": [],
        "facts": {},
        "states": [],
    }


def _add(row: Record, kind: str, record: Record) -> None:
    if kind == "differing":
        row["differing"] = record["names"]
        return
    if kind == "state":
        row["states"].append(record["state"])
        return
    run = row["runs"].setdefault(record["name"], {"role": "ours", "phase": "variant"})
    if kind == "missing":
        run["missing"] = record["reason"]
    elif kind == "peak":
        run["peak_mb"] = record["megabytes"]
    else:
        run.setdefault("samples_s", []).append(record["seconds"])
        run.setdefault("host_s", []).append(record["host_seconds"])
        run["held"] = run.get("held", True) and record["held"]
