"""is_complete, open_or_resume, delete_unless_locked: OUT.partial, the folder of an unfinished job.

It holds the settings (job.json) and the journals. job.json is written first and deleted first, so a folder without it
holds nothing worth keeping.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.atomic import (
    atomic_write,
    sync_folder,
)
from ..data.journal import Journal
from ..errors import UserError
from .manifest import differences, read_manifest, read_object

REMEDY = "Run again with the old settings, give another -o, or start over with --restart."


def partial_folder(out: Path) -> Path:
    """Return the path OUT.partial."""
    return out.with_name(out.name + ".partial")


def journal_path(out: Path) -> Path:
    """Return the path of the journal in OUT.partial."""
    return partial_folder(out) / "journal.bin"


def check_partial(out: Path) -> None:
    """Raise UserError if OUT.partial exists and is not a folder."""
    folder = partial_folder(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"{folder} is a file, but unfinished work is kept in a folder of that name: remove or rename the file"
        )


def is_complete(out: Path, settings: Mapping[str, Any]) -> bool:
    """Return True if `out` is complete under these settings, False if it does not exist.

    Args:
        out: output file.
        settings: settings of the job.

    Raises:
        UserError: `out` has other settings or no manifest. Nothing is overwritten without --restart.
    """
    if (partial_folder(out) / "job.json").is_file() or not out.exists():
        return False
    manifest = read_manifest(out)
    if manifest is None:
        raise UserError(
            f"{out} exists and has no manifest, so its settings are not known. "
            "Give another -o, or overwrite it with --restart."
        )
    changed = _changed(manifest["settings"], settings)
    if changed:
        raise UserError(f"{out} is complete, but under other settings: {_list(changed)} {REMEDY}")
    return True


def open_or_resume(out: Path, settings: Mapping[str, Any]) -> None:
    """Create OUT.partial, or check that an existing one belongs to the same job.

    Args:
        out: output file.
        settings: settings of the job.

    Raises:
        UserError: OUT.partial belongs to a job with other settings.
    """
    check_partial(out)
    folder = partial_folder(out)
    job = folder / "job.json"
    if job.is_file():
        changed = _changed(read_object(job, "start over with --restart"), settings)
        if changed:
            raise UserError(f"{folder} holds an unfinished job that differs: {_list(changed)} {REMEDY}")
        return
    delete(out)
    folder.mkdir()
    with atomic_write(job) as temporary:
        temporary.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    sync_folder(out.parent)


def delete(out: Path) -> None:
    """Delete OUT.partial, job.json first."""
    check_partial(out)
    folder = partial_folder(out)
    (folder / "job.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def delete_unless_locked(out: Path, journals: Iterable[Path]) -> None:
    """Delete OUT.partial.

    Args:
        out: output file.
        journals: the journals in OUT.partial; those that do not exist are skipped.

    Raises:
        UserError: another process has one of the journals open.
    """
    for path in journals:
        if path.exists():
            with Journal(path):
                pass
    delete(out)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ. Models with the same digest are the same, whatever their paths."""
    old, new = before.get("scorer", {}), now["scorer"]
    if "digest" in new and old.get("digest") == new["digest"]:
        now = {**now, "scorer": {**new, "model": old["model"]}}
    return differences(before, now)


def _list(changed: list[str]) -> str:
    return "; ".join(changed) + "."
