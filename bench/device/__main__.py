"""Measure the ops on a GPU. `bench/device.sh` runs all stages in order; each also runs alone.

    python -m bench device check --log out/device/samples.jsonl
    python -m bench device time --log out/device/samples.jsonl
    python -m bench device report out/device/samples.jsonl -o bench/results/h100.json
    python -m bench device time --device cpu --smoke --log /tmp/samples.jsonl      # without a GPU, tiny shapes

Every sample is appended to the log as it is taken, so an interrupted run keeps all of them; `report` makes the results
file and the table from one or more logs. The contenders of a row take turns on the same inputs. The L2 cache is emptied
before every sample, and the GPU is held back until the host has enqueued the call, so that device time and host time
are separate numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from .. import peers
from ..cases.device import CASES
from ..command import command_parser, output_file
from .clock import Clock
from .machine import gpu_state, machine
from .report import make_report, read_steps, table
from .samples import SampleLog, read_log
from .timing import MIN_ROUNDS, profile_case, time_case

STAGES = {
    "check": "every op once on ragged shapes against float64, and ties bit for bit",
    "products": "bare matrix products by cuBLAS and by our mainloop",
    "time": "our ops and the floors, at the first shape of each case",
    "peers": "our ops, dense torch and the peers, at every shape",
    "scoring": "the whole scorer on a model of 1B parameters, as it is, compiled, and without a queue",
    "variants": "our ops with other tiles, groups and programs",
    "profile": "one call of each of our ops between cudaProfilerStart and cudaProfilerStop, for ncu",
}


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = command_parser("device", __doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    for name, text in STAGES.items():
        stage = stages.add_parser(name, help=text, description=text)
        stage.add_argument("--log", type=Path, required=True, help="JSONL file that the measurements are appended to")
        stage.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
        stage.add_argument("--smoke", action="store_true", help="tiny shapes in float32, without compilation by torch")
        stage.add_argument("--op", nargs="+", choices=[case.name for case in CASES], help="only these")
        stage.add_argument("--seconds", type=float, default=240, help="begin no row after this time (default 240)")
    report = stages.add_parser("report", help="make the results file and the table from logs")
    report.add_argument("logs", nargs="+", type=Path, help="logs of one or more runs")
    report.add_argument("--steps", type=Path, help="folder with the steps of device.sh")
    report.add_argument("--commit", help="commit of the code, if the logs come from a copy without git")
    report.add_argument("-o", "--out", type=output_file, required=True, help="results file")
    return parser.parse_args(words)


def report(chosen: argparse.Namespace) -> int:
    made = make_report(read_log(chosen.logs), read_steps(chosen.steps) if chosen.steps else [], chosen.commit)
    chosen.out.write_text(json.dumps(made, indent=1) + "\n")
    print(table(made))
    return 0 if made["rows"] else 1


def check(chosen: argparse.Namespace, log: SampleLog) -> int:
    from .check import check_ops, check_ties

    failures = check_ops(chosen.device, log) + check_ties(chosen.device, log)
    print("\n".join(failures) or "every op agrees with float64")
    return 1 if failures else 0


def run_cases(chosen: argparse.Namespace, log: SampleLog) -> int:
    """Run a stage that goes through the cases, until its time is over."""
    clock = Clock(chosen.device)
    rounds = 2 if chosen.smoke else MIN_ROUNDS
    begin, failures = time.perf_counter(), 0
    dtype = "float32" if chosen.smoke else "bfloat16"
    for case in CASES:
        if chosen.op and case.name not in chosen.op:
            continue
        shapes = [case.tiny] if chosen.smoke else case.shapes if chosen.stage == "peers" else case.shapes[:1]
        for shape in shapes:
            if time.perf_counter() - begin > chosen.seconds:
                log.add("skipped", what=f"{chosen.stage} {case.name} {dict(shape)}: out of time")
                continue
            try:
                if chosen.stage == "variants":
                    from .variants import time_variants

                    time_variants(case, shape, dtype, clock, log, rounds)
                elif chosen.stage == "profile":
                    profile_case(case, shape, dtype)
                else:
                    good = time_case(case, shape, dtype, clock, log, peers=chosen.stage == "peers", rounds=rounds)
                    failures += not good
            except Exception as error:  # a floor that does not fit, for example; the other rows are measured
                reason = f"{type(error).__name__}: {str(error)[:300]}"
                log.add("skipped", what=f"{chosen.stage} {case.name} {dict(shape)}: {reason}")
                print(f"{case.name}: {reason}", file=sys.stderr)
                failures += 1
    return 1 if failures else 0


def main(words: list[str] | None = None) -> int:
    chosen = arguments(words)
    if chosen.stage == "report":
        return report(chosen)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench.device: no CUDA device (--device cpu --smoke runs without one)")
    log = SampleLog(chosen.log)
    versions = peers.versions((*peers.PACKAGES, "nvidia-cutlass-dsl"))
    log.add("machine", **machine(chosen.device), peers=versions, smoke=chosen.smoke)
    log.add("gpu", stage=chosen.stage, state=gpu_state() if chosen.device == "cuda" else None)
    if chosen.smoke:
        torch.compiler.set_stance("force_eager")
    if chosen.stage == "check":
        return check(chosen, log)
    torch.set_default_device(chosen.device)
    if chosen.stage == "products":
        from .products import time_products

        time_products(Clock(chosen.device), log, MIN_ROUNDS)
        return 0
    if chosen.stage == "scoring":
        from .scoring import time_scoring

        dtype = torch.float32 if chosen.smoke else torch.bfloat16
        torch.set_default_device(None)
        return 0 if time_scoring(chosen.device, dtype, log, smoke=chosen.smoke) else 1
    return run_cases(chosen, log)


if __name__ == "__main__":
    sys.exit(main())
