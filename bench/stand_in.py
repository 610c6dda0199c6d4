"""standing_in: Triton's own runtime over a stand-in for libcuda.so.1 (stand_in.c). Kernels are compiled, none runs.

Arguments are packed, tensor maps encoded and kernels launched as on a device, and the stand-in refuses what CUDA's
documentation forbids. It is loaded once in a process, because Triton's launchers stay with the first one they find.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import triton

from main_kernels.backends import registry, use_backend
from main_kernels.backends.triton import TritonBackend, configs

_NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia"


class Note(NamedTuple):
    """A call of the driver."""

    what: str
    """name of the launched kernel, or "map" for a tensor map"""
    size: int
    """programs of the launch, or rows of the map's box"""
    time_ns: int
    """of time.perf_counter_ns, 0 for a map"""


def why_not() -> str:
    """Return why there is no stand-in on this machine; empty if there is."""
    return "" if shutil.which("gcc") else "no gcc to compile the stand-in with"


@functools.cache
def _library() -> tuple[tempfile.TemporaryDirectory[str], ctypes.CDLL]:
    folder = tempfile.TemporaryDirectory()
    library = Path(folder.name) / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{_NVIDIA / 'include'}"]
    subprocess.run(["gcc", *flags, Path(__file__).with_suffix(".c"), "-o", library], check=True)
    loaded = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # later loads of libcuda.so.1 return this one
    loaded.noted.restype = ctypes.c_char_p
    return folder, loaded


def notes() -> list[Note]:
    """Return the calls since the last time."""
    lines = (line.split() for line in _library()[1].noted().decode().splitlines())
    return [Note(what, int(size), int(rest[0]) if rest else 0) for what, size, *rest in lines]


@contextmanager
def standing_in() -> Iterator[Callable[[], list[Note]]]:
    """Pretend that tensors of the CPU are on a device of compute capability 9.0, and run every op on the Triton
    backend. Yields `notes`."""
    folder, _ = _library()
    with ExitStack() as stack:
        paths = {"TRITON_LIBCUDA_PATH": folder.name, "TRITON_CACHE_DIR": folder.name}
        stack.enter_context(patch.dict(os.environ, paths))
        from triton.backends.nvidia.driver import CudaDriver

        pretender = CudaDriver()
        for name, answer in (("get_current_device", 0), ("get_current_stream", 0), ("get_device_capability", (9, 0))):
            setattr(pretender, name, lambda *_, answer=answer: answer)
        stack.enter_context(patch.object(triton.runtime.driver, "_active", pretender))
        stack.enter_context(patch.object(configs, "architecture", lambda _: 90))
        stack.enter_context(patch.object(configs, "multiprocessors", lambda _: 132))
        stack.enter_context(patch.dict(registry.BACKENDS, {"triton": TritonBackend()}))
        stack.enter_context(use_backend("triton"))
        notes()
        yield notes
