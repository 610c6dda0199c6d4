"""built: the shared library of device.cpp, compiled once for each version of torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
FOLDER = Path(__file__).parents[2] / "build" / "pretended_gpu"


def why_not() -> str:
    """Return why there is no pretended GPU on this machine; empty if there is."""
    return "" if shutil.which("g++") else "no g++ to compile it with"


def built() -> Path:
    """Return the library's path. It must be loaded before torch, which looks for a device once: torch is not imported
    here."""
    version = importlib.metadata.version("torch")
    digest = hashlib.sha256(SOURCE.read_bytes() + version.encode()).hexdigest()[:16]
    library = FOLDER / f"device-{digest}.so"
    if library.exists():
        return library
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = library.with_suffix(f".{os.getpid()}.so")  # another process may build it too
    includes = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-w", *includes, str(SOURCE), *libraries, "-o", str(made)]
    subprocess.run(command, check=True)
    made.replace(library)
    return library
