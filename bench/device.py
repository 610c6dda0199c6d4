"""Time the ops on a GPU against bare products and the peers, and write bench/results/<device>.json.

    bench/device.sh                                      # on a machine with a GPU: build, tests, sanitizers, and this
    python -m bench.device                               # the timings alone
    python -m bench.device --device cpu --smoke -o /tmp/smoke.json      # smoke test without a GPU

The contenders of a row take turns on the same inputs; each round starts with the next contender. The L2 cache is
flushed before every sample, and CUDA events take the time. A peer that is missing or fails is recorded with the reason.
Memory is the allocator's peak minus inputs and gradients.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from . import measure, peers
from .cases.case import DTYPES, Row
from .cases.device import CASES, DeviceCase
from .kernels import AGREEMENT, differing, warm_up

RESULTS = Path(__file__).parent / "results"
ROUNDS, MOST_ROUNDS = 7, 30
SECONDS = 4.0  # of rounds, at most, once there are ROUNDS


class Clock:
    """Seconds of one call; on a GPU between two events, with its cache emptied before."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        if self.cuda:
            cache = torch.cuda.get_device_properties(0).L2_cache_size
            self.filler = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], Any]) -> float:
        if not self.cuda:
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.filler.zero_()  # and while the device does it, the host is ahead: no launch is waited for
        events[0].record()
        run()
        events[1].record()
        torch.cuda.synchronize()
        return events[0].elapsed_time(events[1]) / 1e3


def rounds(runs: Mapping[str, Callable[[], Any]], clock: Clock, fewest: int) -> dict[str, list[float]]:
    """Samples of each, in turn, each round beginning with another."""
    names = list(runs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for done in range(max(fewest, MOST_ROUNDS)):
        if done >= fewest and time.perf_counter() - begin >= SECONDS:
            break
        turn = done % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(clock(runs[name]))
    return samples


def fastest(ways: list[Callable[[], Any]], clock: Clock) -> Callable[[], Any]:
    """Of the ways to do a floor, that of the lowest median of three runs, after one to warm up."""
    for way in ways:
        way()
    if len(ways) == 1:
        return ways[0]
    taken = [sorted(clock(way) for _ in range(3))[1] for way in ways]
    return ways[taken.index(min(taken))]


def peak_megabytes(run: Callable[[], Any], row: Row) -> float | None:
    """Beyond what was there before and the gradients it leaves; None on a CPU."""
    if not torch.cuda.is_initialized():
        return None
    for leaf in row.leaves:
        leaf.grad = None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    gradients = sum(leaf.grad.nbytes for leaf in row.leaves if leaf.grad is not None)
    return round((torch.cuda.max_memory_allocated() - before - gradients) / 1e6, 1)


def measured(
    case: DeviceCase, place: int, shape: Mapping[str, int], dtype: str, clock: Clock, fewest: int
) -> dict[str, Any]:
    torch.compiler.reset()
    gc.collect()
    if clock.cuda:
        torch.cuda.empty_cache()
    torch.manual_seed(0)
    row = case.build(DTYPES[dtype], **shape)
    for name in (case.leave_out or {}).get(place, ()):
        row.contenders.pop(name, None)
    floors = {name: fastest(ways, clock) for name, ways in row.floors.items()}
    computed, missing = warm_up(row)
    runs = {**floors, **{name: row.contenders[name].run for name in computed}}
    samples = rounds(runs, clock, fewest)
    times = measure.summary(samples)
    contenders: dict[str, dict[str, Any]] = {}
    for name, contender in row.contenders.items():
        contenders[name] = {"phase": contender.phase}
        if name in missing:
            contenders[name] |= {"median_s": None, "missing": missing[name]}
            continue
        peak = peak_megabytes(contender.run, row)
        contenders[name] |= {**times[name], "computed": computed[name], "peak_mb": peak}
    return {
        "case": case.name,
        "shape": dict(shape),
        "dtype": dtype,
        "bytes_read": row.bytes_read,
        "floors": {name: times[name] for name in floors},
        "contenders": contenders,
        "differing": differing(row, computed, AGREEMENT[dtype]) if "eager" in computed else None,  # not compared
        "targets": [judged(case, target, samples, contenders) for target in case.targets],
    }


def judged(case: DeviceCase, target: Any, samples: dict[str, list[float]], contenders: Mapping[str, Any]) -> Any:
    """A target with the ratio that was measured, and whether ours is ahead of every peer of its phase."""
    out = {
        "op": case.name,
        "contender": target.contender,
        "against": target.against,
        "must": target.must,
        "goal": target.goal,
    }
    if target.contender not in samples:
        return {**out, "missing": contenders[target.contender]["missing"]}
    ratio = measure.ratio(samples, target.contender, target.against)["of_medians"]
    phase, mine = (contenders[target.contender][key] for key in ("phase", "median_s"))
    peers = {n: c["median_s"] for n, c in contenders.items() if not n.startswith("ours") and c["phase"] == phase}
    ahead = [name for name, taken in peers.items() if taken is not None and taken <= mine]
    return {
        **out,
        "ratio": ratio,
        "must_met": ratio <= target.must,
        "goal_met": ratio <= target.goal,
        "peers_ahead": ahead,
    }


def command(*words: str) -> str | None:
    """Return the output of a command, or None if the command is missing or fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(device: str) -> dict[str, Any]:
    out = measure.machine()
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        out |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_mb": properties.total_memory // 10**6,
            "driver": command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "nvcc": (command("nvcc", "--version") or "").splitlines()[-1:],
        }
    return out


def evidence(logs: Path | None) -> list[dict[str, Any]] | None:
    """Read the logs of device.sh: exit status, seconds and last lines of each step, and the counts of its tests.

    The status is "missing" if the tool is not installed, and 124 after a timeout."""
    if logs is None:
        return None
    steps: list[dict[str, Any]] = []
    for line in (logs / "steps.tsv").read_text().splitlines():
        name, status, seconds = line.split("\t")
        log, counts = logs / f"{name}.log", logs / f"{name}.xml"
        steps.append({"step": name, "exit": status, "seconds": int(seconds)})
        if log.exists():
            steps[-1]["end"] = log.read_text(errors="replace").splitlines()[-4:]
        suite = ElementTree.parse(counts).getroot().find("testsuite") if counts.exists() else None
        if suite is not None:
            steps[-1] |= {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    return steps


def table(report: Mapping[str, Any]) -> str:
    """The targets, and who did not run."""
    lines = []
    for row in report["rows"]:
        shape = " ".join(f"{name.upper()}={size}" for name, size in row["shape"].items())
        for target in row["targets"]:
            got = f"{target['ratio']:.3f}" if "ratio" in target else f"missing ({target['missing']})"
            verdict = "missing"
            if "ratio" in target:
                verdict = "goal met" if target["goal_met"] else "must met" if target["must_met"] else "MISSED"
            ahead = f"; ahead of us: {', '.join(target['peers_ahead'])}" if target.get("peers_ahead") else ""
            lines.append(
                f"{row['case']} {target['contender']} / {target['against']} {shape} {row['dtype']}: {got}"
                f" (must {target['must']}, goal {target['goal']}) {verdict}{ahead}"
            )
        for name, contender in row["contenders"].items():
            if "missing" in contender:
                lines.append(f"{row['case']} {shape} {name}: {contender['missing']}")
            elif not row["targets"]:
                over = {floor: contender["median_s"] / taken["median_s"] for floor, taken in row["floors"].items()}
                ratios = ", ".join(f"{ratio:.2f} x {floor}" for floor, ratio in over.items())
                lines.append(f"{row['case']} {shape} {name}: {ratios}")
        if row["differing"]:
            lines.append(f"{row['case']} {shape} DIFFERS FROM EAGER: {', '.join(row['differing'])}")
    return "\n".join(lines + [f"not measured: {what}" for what in report["skipped"]])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, and torch.compile compiles nothing")
    parser.add_argument("--op", nargs="+", choices=[case.name for case in CASES], help="only these")
    parser.add_argument("--minutes", type=float, default=4.0, help="no row is begun after so many (default 4)")
    parser.add_argument("--logs", type=Path, help="folder of what device.sh did before, to keep with the results")
    parser.add_argument("-o", "--out", type=Path, help="default: bench/results/<device>.json")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    begin = time.perf_counter()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench.device: no CUDA device (--device cpu --smoke runs without one)")
    torch.set_default_device(chosen.device)
    if chosen.smoke:
        torch.compiler.set_stance("force_eager")
    dtype = "float32" if chosen.smoke else "bfloat16"
    this = machine(chosen.device)
    report: dict[str, Any] = {
        "machine": this,
        "peers": peers.versions((*peers.ON_A_GPU, "open-clip-torch")),
        "smoke": chosen.smoke,
        "evidence": evidence(chosen.logs),
        "rows": [],
        "skipped": [],
    }
    slug = re.sub(r"[^a-z0-9]+", "-", this["device"].lower()).strip("-")
    out = chosen.out or RESULTS / f"{slug}.json"
    clock = Clock(chosen.device)
    for case in CASES:
        for place, shape in enumerate([case.tiny] if chosen.smoke else case.shapes):
            if chosen.op and case.name not in chosen.op:
                continue
            if (time.perf_counter() - begin) / 60 > chosen.minutes:
                report["skipped"].append(f"{case.name} {dict(shape)}: out of time")
                continue
            try:
                report["rows"].append(measured(case, place, shape, dtype, clock, 2 if chosen.smoke else ROUNDS))
            except Exception as error:  # a floor that does not fit, say: the other rows are measured all the same
                report["skipped"].append(f"{case.name} {dict(shape)}: {type(error).__name__}: {str(error)[:300]}")
            out.parent.mkdir(parents=True, exist_ok=True)  # after every row: a run cut short keeps what it measured
            out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    ours = [
        f"{row['case']}: {name}"
        for row in report["rows"]
        for name, c in row["contenders"].items()
        if name.startswith("ours") and ("missing" in c or name in (row["differing"] or []))
    ]
    print("\n".join(f"ours failed or differs: {what}" for what in ours))
    return 1 if ours or not report["rows"] else 0


if __name__ == "__main__":
    sys.exit(main())
