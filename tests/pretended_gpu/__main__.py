"""python -m tests.pretended_gpu [ARGUMENTS OF PYTEST]"""

from __future__ import annotations

import sys

from .build import why_not
from .device import pretend

FOLDERS = ["tests/kernels", "tests/align"]

if reason := why_not():
    sys.exit(f"There is no pretended GPU: {reason}.")
pretend()

import pytest  # noqa: E402  (may load plugins that import torch)

arguments = sys.argv[1:]
if not any(argument.startswith("tests") for argument in arguments):
    arguments += FOLDERS
sys.exit(pytest.main(["-p", "no:cacheprovider", *arguments]))
