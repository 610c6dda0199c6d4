"""Measurements of the benchmarks: interleaved timing, peak memory of a fresh process, and the machine."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("main-kernels", "torch", "transformers", "triton", "numpy")
MOST_ROUNDS = 40


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int, seconds: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each contender, in turn, round after round: what else the machine does meets all of them alike, so
    ratios within one run mean something where times alone do not. Warm them up first. At least ``rounds`` rounds, and
    more (up to MOST_ROUNDS) while they take less than ``seconds`` in all."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    for done in range(max(rounds, MOST_ROUNDS)):
        if done >= rounds and time.perf_counter() - begin >= seconds:
            break
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
    return samples


def summary(samples: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {
        name: {"median_s": statistics.median(s), "min_s": min(s), "samples_s": [float(f"{x:.4g}") for x in s]}
        for name, s in samples.items()
    }


def ratio(samples: dict[str, list[float]], name: str, floor: str) -> dict[str, float]:
    """The ratio to a floor, by medians and by the best of each, and round by round (its median)."""
    paired = [a / b for a, b in zip(samples[name], samples[floor], strict=True)]
    return {
        "of_medians": statistics.median(samples[name]) / statistics.median(samples[floor]),
        "of_minima": min(samples[name]) / min(samples[floor]),
        "paired_median": statistics.median(paired),
    }


def peak_over(run: Callable[[], Any], outputs: Callable[[], int]) -> float:
    """Peak resident megabytes (10^6 bytes) of ``run`` over what was resident before it, less the bytes of what it
    leaves behind for the caller (``outputs``: its gradients). Linux only; call it once per process."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kilobytes(field: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1])

    clear.write_text("5")  # resets the high-water mark
    before = kilobytes("VmRSS")
    run()
    return ((kilobytes("VmHWM") - before) * 1024 - outputs()) / 1e6


def machine() -> dict[str, Any]:
    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    cpuinfo = Path("/proc/cpuinfo")
    models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")] if cpuinfo.exists() else []
    describe = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:  # no git there
        commit = ""
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "commit": commit or None,
    }
