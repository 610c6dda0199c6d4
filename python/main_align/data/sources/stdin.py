"""STDIN, open_stdin: standard input as a source."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from ...errors import UserError
from .file_formats import open_file
from .source import FileSource

STDIN = "-"


def open_stdin() -> FileSource:
    """Copy standard input to a temporary file, because rows are read more than once, and open that file."""
    if sys.stdin is None:
        raise UserError("-: standard input is closed; pipe the data into it, or name a file")
    temporary = tempfile.NamedTemporaryFile(prefix="main-align-stdin-")  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, temporary)
    if not temporary.tell():
        raise UserError("-: standard input is empty; pipe the data into it, or name a file")
    temporary.flush()
    try:
        source = open_file(Path(temporary.name), name=STDIN)
    except UserError as error:
        raise UserError(str(error).replace(temporary.name, STDIN)) from error
    source.temporary = temporary
    return source
