"""Build one distribution: main_kernels (with the compiled module main_kernels._C) and main_align.

The C++ is optional: without a working compiler the package installs all the same and runs on its plain torch
backend (`main-align doctor` says so). So is CUDA: without nvcc, or where it fails, the module has no CUDA kernels.
Nothing here imports torch, so one build serves every torch version, and CUDA's runtime is linked statically, so it
needs no driver either.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent.resolve()


# Machine code for each, and the PTX of the first for devices that are newer than all of them.
NVCC = [
    "-std=c++17",
    "-O3",
    "--threads=0",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-gencode=arch=compute_80,code=[sm_80,compute_80]",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_100a,code=sm_100a",
]


class BuildKernels(build_ext):
    """Adds OpenMP where the compiler has it (without it the kernels run on one thread) and CUDA where there is nvcc."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        if self._compiles("-fopenmp"):
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            self.announce("no nvcc: building without CUDA kernels", level=3)
            return super().build_extension(ext)
        plain = dict(vars(ext))
        try:
            self._add_cuda(ext, nvcc)
            return super().build_extension(ext)
        except Exception as error:  # whatever it was, it must not cost the rest of the module
            self.warn(f"building without CUDA kernels: {error}")
            vars(ext).update(plain)
            return super().build_extension(ext)

    def _add_cuda(self, ext: Pybind11Extension, nvcc: str) -> None:
        """Compiles csrc/cuda/*.cu and adds what the module needs for them."""
        objects = []
        for source in sorted(HERE.glob("csrc/cuda/*.cu")):
            objects.append(os.path.join(self.build_temp, f"{source.stem}.cu.o"))
            os.makedirs(self.build_temp, exist_ok=True)
            subprocess.run([nvcc, *NVCC, "-c", os.path.relpath(source, HERE), "-o", objects[-1]], check=True)
        dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True)
        # asked, because nvcc may be a script far from its toolkit
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
            except Exception:  # any failure of any compiler means the same: no OpenMP
                return False
        return True


kernels = Pybind11Extension(
    "main_kernels._C",
    sorted(os.path.relpath(p, HERE) for p in [*HERE.glob("csrc/*.cpp"), *HERE.glob("csrc/cpu/*.cpp")]),
    depends=[os.path.relpath(p, HERE) for p in HERE.glob("csrc/**/*.*")],
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
