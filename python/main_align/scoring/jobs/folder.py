"""JobFolder, intact: the files of a job, and which of its work is done.

A finished piece of work appears under its final name by a rename, so it is whole or absent. Two processes that make the
same piece write the same bytes, so the second rename changes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ...data.atomic import naming_full_disk, replacing
from ...errors import UserError
from ..score_file import part_name


class JobFolder:
    """Paths in the folder of a job.

    Args:
        path: the folder. It holds job.json, bank.safetensors, parts/ and, until the job is complete, work/.
        worker: name of the process group that works on it; unfinished work of different names is kept apart, so
            machines that share a file system need no locks. Default "all".
    """

    def __init__(self, path: Path, worker: str = "all") -> None:
        self.path, self.is_whole = path, worker == "all"
        self.job, self.bank, self.parts = path / "job.json", path / "bank.safetensors", path / "parts"
        self.work = path / "work"
        self.own = self.work / worker  # unfinished work
        self.measured = self.work / "bank"  # finished bank units
        self.lock = self.own / "lock"
        self.candidates = self.work / "candidates.journal"

    def create(self) -> None:
        """Make the folders."""
        for folder in (self.own, self.measured, self.parts):
            folder.mkdir(parents=True, exist_ok=True)

    def part(self, index: int) -> Path:
        """Return the path of the scores of unit `index`."""
        return self.parts / part_name(index)

    def part_journal(self, index: int) -> Path:
        """Return the path of the journal of unit `index`."""
        return self.own / f"part-{index:06}.journal"

    def measured_unit(self, index: int) -> Path:
        """Return the path of the finished bank unit `index`."""
        return self.measured / f"{index:06}.journal"

    def measured_journal(self, index: int) -> Path:
        """Return the path of the journal of bank unit `index`."""
        return self.own / f"bank-{index:06}.journal"

    @contextmanager
    def finished(self, path: Path) -> Iterator[Path]:
        """Yield a path of one's own for a new file; on success it is flushed to the disk and renamed to `path`."""
        own = self.own / path.name
        with naming_full_disk(own), replacing(path, own):
            yield own

    def delete_work(self) -> None:
        """Delete what only unfinished jobs need."""
        shutil.rmtree(self.work, ignore_errors=True)


@contextmanager
def intact(path: Path, remedy: str = "start over with --restart") -> Iterator[None]:
    """Name a file of a job that cannot be read, for example after a power cut.

    Args:
        path: the file.
        remedy: advice that ends the message.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error
