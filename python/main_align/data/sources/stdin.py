"""Standard input as a file: kept on the disk while it is read, since rows are walked more than once."""

from __future__ import annotations

import shutil
import sys
import tempfile
from typing import Any

STDIN = "-"


def spooled() -> Any:
    """A temporary file with all of standard input; it goes when the object does."""
    file = tempfile.NamedTemporaryFile(prefix="main-align-stdin-")  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, file)
    file.flush()
    return file
