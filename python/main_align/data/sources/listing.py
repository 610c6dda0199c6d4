"""expanded, refuse_output, refuse_overwriting: files that a folder or a pattern stands for, and outputs among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from glob import glob, has_magic
from pathlib import Path

from ...errors import UserError
from .file_formats import BY_ENDING, file_ending
from .hub_dataset import is_saved_dataset
from .source import Source


def is_listing(item: str | Path) -> bool:
    """Return True for a folder of files or a pattern, which stand for the files that there are when they are read."""
    path = Path(item)
    if path.exists():
        return path.is_dir() and not is_saved_dataset(path)
    return has_magic(str(item))


def expanded(item: str | Path) -> list[Path]:
    """Return the files that a pattern, or a folder of files, stands for, sorted; a file stands for itself."""
    path = Path(item)
    if path.is_file():
        return [path]
    if not is_listing(item):
        return []
    if path.is_dir():
        files = (file for file in path.rglob("*") if file_ending(file) in BY_ENDING and file.is_file())
        return sorted(file for file in files if not _is_left_out(file.relative_to(path)))
    files = (Path(file) for file in glob(str(item), recursive=True))
    found = sorted(file for file in files if file.is_file())
    if not found:
        raise UserError(f"{item}: no file matches this pattern")
    return found


def _holds(item: str, out: Path) -> bool:
    """Return True if a folder or a pattern would stand for `out` too, once that exists."""
    listing, place = Path(os.path.abspath(item)), Path(os.path.abspath(out))
    if listing.is_dir():
        return listing in place.parents and not _is_left_out(place.relative_to(listing))
    return fnmatch(str(place), str(listing)) if "**" in item else place.match(str(listing))


def refuse_overwriting(out: Path, *inputs: str | Path | Sequence[str | Path] | None) -> None:
    """Raise UserError if `out` is a file that is read.

    Args:
        out: the file to write.
        inputs: paths, lists of paths, or None for what has no path.
    """
    for item in inputs:
        for path in [item] if isinstance(item, (str, Path)) else item or ():
            if out.exists() and Path(path).exists() and out.samefile(path):
                raise UserError(f"{out} would overwrite its own input; give another -o")


def refuse_output(source: Source, out: Path) -> None:
    """Raise UserError if `out` is a file of the source, or would be one the next time its files are listed."""
    refuse_overwriting(out, source.paths())
    for item in source.listings:
        if _holds(item, out):
            raise UserError(
                f"{out} would be read as data the next time, because {item} stands for it too; give an -o elsewhere, "
                "or name the files to read"
            )


def _is_left_out(path: Path) -> bool:
    """Return True for hidden files and folders, such as the checkpoints of notebooks."""
    return any(part.startswith((".", "_")) for part in path.parts)
