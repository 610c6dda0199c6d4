"""Freed memory is kept inside the block, without page faults, and returned at its end."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from main_align.training import host_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc")

PROGRAM = """
import resource, runpy, sys
import torch

keep_freed_memory = runpy.run_path(sys.argv[2])["keep_freed_memory"]  # without all that the package imports

def step():
    return [torch.ones(size) for size in [1 << 19, 1 << 20, 31 << 18] * 4]  # 2, 4 and 31 MB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

before = megabytes()
with keep_freed_memory(sys.argv[1]):
    for _ in range(5):
        step()
    start = faults()
    for _ in range(3):
        step()
    counted = faults() - start
    kept = megabytes() - before
print(counted, kept, megabytes() - before)
"""


def run(device, **environment):
    """Return (page faults of three steps, megabytes kept before the end of the block, megabytes kept after it)."""
    command = [sys.executable, "-c", PROGRAM, device, host_memory.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@linux
def test_memory_is_used_again_and_returned_at_the_end():
    faults, kept, left = run("cpu")
    assert faults < 1000  # 148 MB are 37,888 pages, or 74 where pages are huge
    assert kept >= 148 > 50 > left


@linux
@pytest.mark.parametrize(
    ("device", "environment"),
    [
        ("cuda", {}),
        ("cpu", {"MALLOC_ARENA_MAX": "1"}),
        ("cpu", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}),
    ],
)
def test_elsewhere_and_beside_settings_of_the_environment_nothing_changes(device, environment):
    assert run(device, **environment)[2] > 50


@linux
def test_the_settings_and_those_at_the_end(monkeypatch):
    calls = []
    libc = SimpleNamespace(mallopt=lambda *call: calls.append(call), malloc_trim=lambda pad: calls.append(pad))
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: libc)
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    with host_memory.keep_freed_memory("cpu"):
        assert calls == [(-3, 32 << 20), (-1, -1)]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    assert calls[2:] == [(-1, 64 << 20), 0]
    libc.__dict__.clear()  # another C library
    with host_memory.keep_freed_memory("cpu"):
        pass
    assert len(calls) == 4
