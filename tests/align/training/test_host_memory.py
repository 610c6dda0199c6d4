"""Freed memory is kept inside the block and returned at its end, without page faults between."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from main_align.training.host_memory import keep_freed_memory

def step():
    return [torch.ones(size) for size in (1 << 19, 1 << 20, 1 << 24)]  # 2, 4 and 64 MB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

before = megabytes()
with keep_freed_memory(sys.argv[1]):
    step(), step()
    start = faults()
    for _ in range(3):
        step()
    counted = faults() - start
    kept = megabytes() - before
print(counted, kept, megabytes() - before)
"""


def run(device, **environment):
    """Return (page faults of three steps, megabytes kept before the end of the block, megabytes kept after it)."""
    command = [sys.executable, "-c", PROGRAM, device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_the_memory_of_a_step_is_used_again():
    faults, kept, left = run("cpu")
    assert faults < 1000  # 70 MB are 17,920 pages, or 35 where pages are huge
    assert kept >= 70 > 40 > max(left, run("cuda")[1])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_stay(name):
    value = "1" if name == "MALLOC_ARENA_MAX" else "glibc.malloc.arena_max=1"
    assert run("cpu", **{name: value})[1] < 40
