"""versions, installed, lowest_versions, is_older: the versions of the software that produces a result."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

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


def lowest_versions() -> dict[str, str]:
    """Return the lowest version of each package that main-kernels or any of its extras needs."""
    try:
        requirements = requires("main-kernels") or []
    except PackageNotFoundError:  # run from its source
        requirements = []
    lowest: dict[str, str] = {}
    for found in (re.match(r"([\w.-]+)(?:\[[^]]*\])? *>=([\d.]+)", each) for each in requirements):
        if found and (found[1] not in lowest or is_older(found[2], lowest[found[1]])):
            lowest[found[1]] = found[2]
    return lowest


def is_older(installed_version: str, bound: str) -> bool:
    """Return True if a version is below a bound. Pre-releases count as releases."""
    return _release(installed_version) < _release(bound)


def _release(text: str) -> list[int]:
    """Return the numbers of a version, without zeros at the end: 4.56 is 4.56.0."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return [int(number) for number in re.sub(r"(\.0+)+$", "", found[0]).split(".")] if found else []
