"""versions, installed: the versions of the software that produced a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "main-kernels",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
)


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of PACKAGES, with None for a package that is not installed."""
    return {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}}


def installed(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
