"""Build one distribution: main_kernels (with the compiled module main_kernels._C) and main_align.

The C++ is optional: without a working compiler the package installs all the same and runs on its plain torch
backend (`main-align doctor` says so). Nothing here imports torch, so one build serves every torch version.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent.resolve()


class BuildKernels(build_ext):
    """Adds OpenMP where the compiler has it; without it the kernels run on one thread."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        if self._compiles("-fopenmp"):
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        super().build_extension(ext)

    def _compiles(self, flag: str) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.cpp"
            source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[flag])
            except Exception:  # any failure of any compiler means the same: no OpenMP
                return False
        return True


kernels = Pybind11Extension(
    "main_kernels._C",
    sorted(os.path.relpath(p, HERE) for p in [*HERE.glob("csrc/*.cpp"), *HERE.glob("csrc/cpu/*.cpp")]),
    depends=[os.path.relpath(p, HERE) for p in HERE.glob("csrc/cpu/*.h")],
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=["-O3", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"],
    optional=True,
)

setup(
    packages=[*find_packages(include=["main_kernels*"]), *find_packages("python", include=["main_align*"])],
    package_dir={"main_align": "python/main_align"},
    package_data={"main_kernels": ["py.typed"], "main_align": ["py.typed"]},
    ext_modules=[kernels],
    cmdclass={"build_ext": BuildKernels},
)
