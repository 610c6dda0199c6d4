"""make_report and table: the results file and the printed table of a GPU run, from its logs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..cases.device import CASES, Target

Record = dict[str, Any]
TARGETS = {case.name: case.targets for case in CASES}


def make_report(records: Iterable[Record], steps: list[Record]) -> Record:
    """Combine the records of one or more logs.

    Args:
        records: as read by `read_log`.
        steps: as read by `read_steps`.

    Returns:
        JSON-ready: machine, steps, failed checks, and the rows with their samples, medians and targets.
    """
    report: Record = {"machines": [], "steps": steps, "checks": [], "rows": [], "skipped": []}
    rows: dict[str, Record] = {}
    for record in records:
        kind = record.pop("kind")
        if kind == "machine" and record not in report["machines"]:
            report["machines"].append(record)
        elif kind == "check":
            report["checks"].append(record)
        elif kind == "skipped":
            report["skipped"].append(record["what"])
        elif kind == "row":
            rows.setdefault(record["row"], record | {"runs": {}, "differing": None, "states": []})
        elif "row" in record:
            _add_to_row(rows[record.pop("row")], kind, record)
    for row in rows.values():
        for run in row["runs"].values():
            _summarize(run)
        row["targets"] = [_judge(row, target) for target in TARGETS.get(row["case"], ())]
        report["rows"].append(row)
    return report


def read_steps(folder: Path) -> list[Record]:
    """Read the steps of device.sh from its folder: exit status, seconds, last lines, and the counts of its tests.

    The status is "missing" if the tool is not installed, and 124 after a timeout.
    """
    steps: list[Record] = []
    file = folder / "steps.tsv"
    for line in file.read_text().splitlines() if file.exists() else ():
        name, status, seconds = line.split("\t")
        log, counts = folder / f"{name}.log", folder / f"{name}.xml"
        steps.append({"step": name, "exit": status, "seconds": int(seconds)})
        if log.exists():
            steps[-1]["end"] = log.read_text(errors="replace").splitlines()[-4:]
        suite = ElementTree.parse(counts).getroot().find("testsuite") if counts.exists() else None
        if suite is not None:
            steps[-1] |= {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    return steps


def table(report: Mapping[str, Any]) -> str:
    """Return the targets, the ratios of rows without targets, and everything that failed or is missing."""
    lines = [f"CHECK FAILED {c['op']} {c['dtype']}: {c['failure']}" for c in report["checks"] if c["failure"]]
    for row in report["rows"]:
        shape = " ".join(f"{name.upper()}={size}" for name, size in row["shape"].items())
        lines += [_target_line(row, shape, target) for target in row["targets"] if target["contender"] in row["runs"]]
        judged = {target["contender"] for target in row["targets"]}
        for name, run in row["runs"].items():
            if "missing" in run:
                lines.append(f"{row['case']} {shape} {name}: {run['missing']}")
            elif "median_s" in run and name not in judged and name not in row["floors"]:
                lines.append(f"{row['case']} {shape} {name}: {run['median_s'] * 1e3:.3f} ms{_ratios(row, run)}")
        if row["differing"]:
            lines.append(f"{row['case']} {shape} DIFFERS FROM EAGER: {', '.join(row['differing'])}")
    return "\n".join(lines + [f"not measured: {what}" for what in report["skipped"]])


def _add_to_row(row: Record, kind: str, record: Record) -> None:
    if kind == "differing":
        row["differing"] = record["names"]
        return
    if kind == "state":
        row["states"].append(record["state"])
        return
    run = row["runs"].setdefault(record["name"], {})
    if kind == "missing":
        run["missing"] = record["reason"]
    elif kind == "peak":
        run["peak_mb"] = record["megabytes"]
    else:
        for name in ("seconds", "host_seconds", "held"):
            run.setdefault(name, []).append(record[name])


def _summarize(run: Record) -> None:
    if "seconds" not in run:
        return
    held = run.pop("held")
    run["held"] = all(held)
    run["median_s"], run["min_s"] = statistics.median(run["seconds"]), min(run["seconds"])
    run["host_median_s"] = statistics.median(run["host_seconds"])


def _judge(row: Record, target: Target) -> Record:
    """Return a target with its measured ratio and the peers of its phase that are ahead."""
    out: Record = {name: getattr(target, name) for name in ("contender", "against", "must", "goal")}
    mine, floor = (row["runs"].get(name, {}) for name in (target.contender, target.against))
    if "median_s" not in mine or "median_s" not in floor:
        return out | {"missing": mine.get("missing", "not measured")}
    ratio = mine["median_s"] / floor["median_s"]
    phase = row["phases"].get(target.contender)
    peers = {name: run for name, run in row["runs"].items() if row["phases"].get(name) == phase and "median_s" in run}
    ahead = [n for n, run in peers.items() if not n.startswith("ours") and run["median_s"] <= mine["median_s"]]
    return out | {
        "ratio": ratio,
        "must_met": ratio <= target.must,
        "goal_met": ratio <= target.goal,
        "peers_ahead": ahead,
    }


def _target_line(row: Record, shape: str, target: Record) -> str:
    what = f"{row['case']} {target['contender']} / {target['against']} {shape} {row['dtype']}"
    if "ratio" not in target:
        return f"{what}: missing ({target['missing']})"
    verdict = "goal met" if target["goal_met"] else "must met" if target["must_met"] else "MISSED"
    ahead = f"; ahead of us: {', '.join(target['peers_ahead'])}" if target["peers_ahead"] else ""
    host = row["runs"][target["contender"]]["host_median_s"] * 1e6
    limits = f"(must {target['must']}, goal {target['goal']}; host {host:.0f} µs)"
    return f"{what}: {target['ratio']:.3f} {limits} {verdict}{ahead}"


def _ratios(row: Record, run: Record) -> str:
    floors = {name: row["runs"][name] for name in row["floors"] if "median_s" in row["runs"].get(name, {})}
    ratios = ", ".join(f"{run['median_s'] / floor['median_s']:.3f} x {name}" for name, floor in floors.items())
    return f", {ratios}" if ratios else ""
