"""OUT.partial/, where an unfinished job keeps its settings and its journal until OUT is complete.

job.json is written first and deleted first, so a folder without it holds nothing worth keeping.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.atomic import (
    atomic_write,
    sync_folder,
)
from ..errors import UserError
from .manifest import differences, read_manifest, read_object

REMEDY = "Run again with the old settings, give another -o, or start over with --restart."


def partial_folder(out: Path) -> Path:
    """OUT.partial, beside OUT."""
    return out.with_name(out.name + ".partial")


def journal_path(out: Path) -> Path:
    """The journal inside OUT.partial."""
    return partial_folder(out) / "journal.bin"


def check_partial(out: Path) -> None:
    """Raise UserError where something else has the name OUT.partial."""
    folder = partial_folder(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"{folder} is a file, and unfinished work is kept in a folder of that name: remove or rename it"
        )


def finished(out: Path, settings: Mapping[str, Any]) -> bool:
    """True where `out` is already complete under these settings.

    Raises UserError where `out` exists but is not: nothing is overwritten without --restart.
    """
    if (partial_folder(out) / "job.json").is_file() or not out.exists():
        return False
    manifest = read_manifest(out)
    if manifest is None:
        raise UserError(
            f"{out} exists and has no manifest, so nobody knows what it holds. "
            "Give another -o, or overwrite it with --restart."
        )
    changed = _changed(manifest["settings"], settings)
    if changed:
        raise UserError(f"{out} is complete, but under other settings: {_list(changed)} {REMEDY}")
    return True


def open_partial(out: Path, settings: Mapping[str, Any]) -> None:
    """Create OUT.partial, or check that the one found belongs to the same job."""
    check_partial(out)
    folder = partial_folder(out)
    job = folder / "job.json"
    if job.is_file():
        changed = _changed(read_object(job, "start over with --restart"), settings)
        if changed:
            raise UserError(f"{folder} holds an unfinished job that differs: {_list(changed)} {REMEDY}")
        return
    discard(out)
    folder.mkdir()
    with atomic_write(job) as temporary:
        temporary.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    sync_folder(out.parent)


def discard(out: Path) -> None:
    """Remove OUT.partial, job.json first."""
    check_partial(out)
    folder = partial_folder(out)
    (folder / "job.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ; a model of the same digest is the same one, whatever its path is called."""
    old, new = before.get("scorer", {}), now["scorer"]
    if "digest" in new and old.get("digest") == new["digest"]:
        now = {**now, "scorer": {**new, "model": old["model"]}}
    return differences(before, now)


def _list(changed: list[str]) -> str:
    return "; ".join(changed) + "."
