"""atomic_write, replacing, lock, sync_folder, naming_full_disk: files that appear complete, and have one writer."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder. On success it is renamed to `path`; on failure it is deleted.

    Raises:
        UserError: another process is writing `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    with _locked(temporary, path):
        try:
            with naming_full_disk(path), replacing(path, temporary):
                yield temporary
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, temporary: Path) -> Iterator[None]:
    """On success, flush the temporary file to the disk and rename it to `path`."""
    yield
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Name the file in the error of a write to a full disk; Python names a file only where it is opened."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            error.filename = str(path)
        raise


def _locked(temporary: Path, path: Path) -> IO[bytes]:
    """Create or open the temporary file and lock it until it is closed. A file that a kill left has no lock."""
    while True:
        file = temporary.open("ab")
        if not lock(file):
            file.close()
            raise UserError(f"{path}: another process is writing this file; wait, or give another path")
        with suppress(FileNotFoundError):
            # the process that had the lock may have renamed or deleted the file since it was opened
            if os.path.samestat(os.fstat(file.fileno()), temporary.stat()):
                return file
        file.close()


def lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed, and return True; on a file system without locks, only return True.

    Returns:
        False if another process has locked the file.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def sync_folder(folder: Path) -> None:
    """Flush renames and new names in `folder` to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
