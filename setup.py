"""Build one distribution: main_kernels (with the compiled module main_kernels._C) and main_align.

The C++ is optional: without a working compiler the package still installs and uses its plain torch backend
(`main-align doctor` says so). MAIN_KERNELS_CUDA=1 also compiles the CUDA kernels with nvcc, and fails if that fails.
Nothing here imports torch, so one build works with every torch version. CUDA's runtime is linked statically, so the
module needs no driver.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

if TYPE_CHECKING:
    from setuptools.command.editable_wheel import EditableStrategy
    from wheel.wheelfile import WheelFile

HERE = Path(__file__).parent.resolve()


NVCC = ["-std=c++17", "-O3", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden"]
# PTX of the oldest serves devices that are newer than all of these.
ARCHITECTURES = "8.0+PTX;9.0a;10.0a"


def architecture_flags(architectures: str) -> list[str]:
    """Return nvcc's flags for a list such as "8.0+PTX;9.0a", in the format of torch's TORCH_CUDA_ARCH_LIST."""
    flags = []
    for entry in re.split(r"[;\s]+", architectures.strip()):
        found = re.fullmatch(r"(\d+)\.(\d+a?)(\+PTX)?", entry)
        if found is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected versions such as 8.0+PTX;9.0a, got {entry!r}")
        number = found[1] + found[2]
        code = f"[sm_{number},compute_{number}]" if found[3] else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


def wants_cuda() -> bool:
    """Read the choice MAIN_KERNELS_CUDA: 1 builds the CUDA kernels, 0 or nothing leaves them out."""
    choice = os.environ.get("MAIN_KERNELS_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"MAIN_KERNELS_CUDA: expected 0 or 1, got {choice!r}")
    return choice == "1"


class BuildKernels(build_ext):
    """Adds OpenMP if the compiler supports it (without it the kernels run on one thread), and CUDA if requested."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        if self._compiles("-fopenmp"):
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        if not wants_cuda():
            return super().build_extension(ext)
        ext.optional = False  # an explicit request fails instead of being skipped
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            raise SystemExit("MAIN_KERNELS_CUDA=1 needs nvcc on the path: install the CUDA toolkit, or leave it out")
        self._add_cuda(ext, nvcc)
        return super().build_extension(ext)

    def _add_cuda(self, ext: Pybind11Extension, nvcc: str) -> None:
        """Compile csrc/cuda/*.cu and add the objects, bindings and libraries to the module."""
        objects = []
        architectures = architecture_flags(os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES)
        for source in sorted(HERE.glob("csrc/cuda/*.cu")):
            objects.append(os.path.join(self.build_temp, f"{source.stem}.cu.o"))
            os.makedirs(self.build_temp, exist_ok=True)
            subprocess.run(
                [nvcc, *NVCC, *architectures, "-c", os.path.relpath(source, HERE), "-o", objects[-1]], check=True
            )
        dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True)
        # queried, because nvcc may be a script outside its toolkit
        libraries = list(dict.fromkeys(re.findall(r'"-L([^"]+)"', dry.stderr)))
        ext.sources = [*ext.sources, "csrc/cuda/bindings.cpp"]
        ext.extra_objects = [*ext.extra_objects, *objects]
        ext.define_macros = [*ext.define_macros, ("MK_CUDA", "1")]
        ext.library_dirs = [*ext.library_dirs, *libraries]
        ext.libraries = [*ext.libraries, "cudart_static", "dl", "rt", "pthread"]

    def _compiles(self, flag: str) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.cpp"
            source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[flag])
            except Exception:  # every failure of every compiler means no OpenMP
                return False
        return True


class PlainPaths:
    """An editable install as two plain paths in a .pth file, which type checkers and editors read.

    For packages in two folders setuptools would write an import hook, which they do not run.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> PlainPaths:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, wheel: WheelFile, files: list[str], mapping: dict[str, str]) -> None:
        wheel.writestr(f"__editable__.{self.name}.pth", f"{HERE}\n{HERE / 'python'}\n")


class EditableWheel(editable_wheel):
    """Writes PlainPaths, unless a mode was requested (`--config-settings editable_mode=strict`).

    `_select_strategy` is private to setuptools: a version without it installs its import hook.
    """

    def _select_strategy(self, name: str, tag: str, build_lib: str | Path) -> EditableStrategy | PlainPaths:
        return super()._select_strategy(name, tag, build_lib) if self.mode else PlainPaths(name)


kernels = Pybind11Extension(
    "main_kernels._C",
    sorted(os.path.relpath(p, HERE) for p in [*HERE.glob("csrc/*.cpp"), *HERE.glob("csrc/cpu/*.cpp")]),
    depends=[os.path.relpath(p, HERE) for p in HERE.glob("csrc/**/*.*")],
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=["-O3", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"],
    optional=True,
)

ParallelCompile(default=0).install()  # one compiler per core

setup(
    packages=[*find_packages(include=["main_kernels*"]), *find_packages("python", include=["main_align*"])],
    package_dir={"main_align": "python/main_align"},
    package_data={"main_kernels": ["py.typed"], "main_align": ["py.typed", "reporting/assets/**"]},
    ext_modules=[kernels],
    cmdclass={"build_ext": BuildKernels, "editable_wheel": EditableWheel},
)
