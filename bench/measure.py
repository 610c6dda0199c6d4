"""interleaved, fastest, peak_over and machine: the measurements of all benchmarks."""

from __future__ import annotations

import datetime
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from main_kernels.processor import has_fast_bfloat16

PACKAGES = ("main-kernels", "torch", "transformers", "triton", "numpy")
MAX_ROUNDS = 40
FOLDER = Path(__file__).parent


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int, seconds: float = 0.0) -> dict[str, list[float]]:
    """Time the contenders in turn, round after round.

    Other load on the machine affects all contenders alike, so ratios within one run are meaningful even if the times
    are not.

    Args:
        contenders: functions by name, already warmed up.
        rounds: minimum number of rounds.
        seconds: continue, up to MAX_ROUNDS, until the rounds took this long.

    Returns:
        Samples of each contender, in seconds.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    for done in range(max(rounds, MAX_ROUNDS)):
        if done >= rounds and time.perf_counter() - begin >= seconds:
            break
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
    return samples


def fastest(ways: list[Callable[[], Any]]) -> Callable[[], Any]:
    """Run every variant once, then return the one with the best of two timed runs."""
    for way in ways:
        way()
    if len(ways) == 1:
        return ways[0]
    samples = interleaved({str(place): way for place, way in enumerate(ways)}, 2)
    return ways[min(range(len(ways)), key=lambda place: min(samples[str(place)]))]


def peak_over(run: Callable[[], Any], outputs: Callable[[], int]) -> float:
    """Measure the peak memory of one call. Linux only; call it once per process.

    Args:
        run: the call.
        outputs: returns the bytes that `run` leaves for the caller, such as gradients.

    Returns:
        Peak resident megabytes (10^6 bytes) beyond what was resident before, without the outputs.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kilobytes(field: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1])

    clear.write_text("5")  # resets the high-water mark
    before = kilobytes("VmRSS")
    run()
    return ((kilobytes("VmHWM") - before) * 1024 - outputs()) / 1e6


def machine() -> dict[str, Any]:
    """Describe the machine, the package versions and the commit."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    cpuinfo = Path("/proc/cpuinfo")
    described = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = [x for x in described.splitlines() if x.startswith("model name")]
    cpu = models[0].split(":")[1].strip() if models else platform.processor()
    instruction_set = torch.backends.cpu.get_cpu_capability()
    is_off = "avx512vl" in described and instruction_set != "AVX512"
    return {
        "cpu": f"{cpu} without its AVX-512" if is_off else cpu,
        "instruction_set": instruction_set,
        "bfloat16_instructions": has_fast_bfloat16(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str | None:
    """Return the commit, with "-dirty" if a file besides the results differs from it; None without git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=FOLDER).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "") or None
    except OSError:  # git is not installed
        return None
