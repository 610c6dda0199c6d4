"""machine and gpu_state: the GPU, its driver, and its clocks, power and temperature during a run."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

from .. import measure

STATE = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
    "clocks_throttle_reasons.active": "throttle_reasons",
}


def command(*words: str) -> str | None:
    """Return the output of a command, or None if it is missing or fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(device: str) -> dict[str, Any]:
    """Describe the machine and, on CUDA, the GPU and its toolkit."""
    described = measure.machine()
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_mb": properties.total_memory // 10**6,
            "driver": command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "nvcc": (command("nvcc", "--version") or "").splitlines()[-1:],
        }
    return described


def gpu_state() -> dict[str, str] | None:
    """Return clocks, power, temperature and reasons for throttling as nvidia-smi states them; None without it."""
    line = command("nvidia-smi", f"--query-gpu={','.join(STATE)}", "--format=csv,noheader,nounits", "--id=0")
    return None if line is None else dict(zip(STATE.values(), line.split(", "), strict=False))
