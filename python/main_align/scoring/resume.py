"""partial_folder, is_complete, open_or_resume, delete: the folder of a job, in which it resumes.

A job that writes a file OUT works in the folder OUT.partial, which is deleted at the end. One that writes a folder
works in it. job.json, with the settings, is written first. In OUT.partial it is deleted first: without it, that folder
holds nothing worth keeping. In an output folder it is deleted last: without it, the folder is not ours.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.atomic import atomic_write, sync_folder
from ..data.journal import Journal
from ..data.pairs import is_unicode
from ..data.write import check_output as check_rows_output
from ..errors import UserError
from .fingerprint import same_model
from .jobs.shard import Shard
from .manifest import differences, is_folder_output, manifest_path, read_manifest, read_object
from .score_file import score_parts

REMEDY = "Run again with the old settings, give another -o, or start over with --restart."
JOB = "job.json"
MADE = ("manifest.json", "bank.safetensors", "parts", "work", JOB)
"""what a job makes in an output folder, in the order in which it is deleted"""


def partial_folder(out: Path) -> Path:
    """Return the path OUT.partial, or OUT itself if it is a folder."""
    return out if is_folder_output(out) else out.with_name(out.name + ".partial")


def check_output(out: Path, shard: Shard) -> None:
    """Raise UserError unless scores can be written to `out`: a file, or a folder, which a shard needs."""
    if not is_unicode(str(out.absolute())):
        raise UserError(f"{out}: pyarrow writes only to paths in UTF-8; rename the folder, or give another -o")
    if is_folder_output(out):
        if not out.absolute().parent.is_dir():
            raise UserError(f"{out}: the folder {out.parent} does not exist; create it first")
        return
    check_rows_output(out)
    if not shard.is_whole:
        raise UserError(f"{out}: a shard writes parts, so the output is a folder; main-align merge makes it one file")


def check_partial(out: Path) -> None:
    """Raise UserError unless the folder of the job can be used: OUT.partial is one, or an output folder is ours."""
    folder = partial_folder(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"{folder} is a file, but unfinished work is kept in a folder of that name: remove or rename the file"
        )
    if is_folder_output(out) and folder.exists() and not (folder / JOB).is_file():
        _refuse_others(folder, ("work",))  # which is made before job.json


def _refuse_others(folder: Path, names: Collection[str]) -> None:
    for child in sorted(folder.iterdir()):
        if child.name not in names:
            raise UserError(f"{folder} holds {child.name}, which is not of a job; move it, or give a new folder")


def is_complete(out: Path, settings: Mapping[str, Any]) -> bool:
    """Return True if `out` is complete under these settings, False if it does not exist.

    Args:
        out: output file or folder.
        settings: settings of the job.

    Raises:
        UserError: `out` has other settings, no manifest or not all parts. Nothing is overwritten without --restart.
    """
    if is_folder_output(out):
        if not manifest_path(out).is_file():
            return False
    elif (partial_folder(out) / JOB).is_file() or not out.exists():
        return False
    manifest = read_manifest(out)
    if manifest is None:
        raise UserError(
            f"{out} exists and has no manifest, so its settings are not known. "
            "Give another -o, or overwrite it with --restart."
        )
    if is_folder_output(out):
        score_parts(out)  # an error if parts were lost
    changed = _changed(manifest["settings"], settings)
    if changed:
        raise UserError(f"{out} is complete, but under other settings: {_list(changed)} {REMEDY}")
    return True


def open_or_resume(out: Path, settings: Mapping[str, Any], temporary: Path | None = None) -> None:
    """Create the folder of a job, or check that an existing one belongs to the same job.

    Args:
        out: output file or folder.
        settings: settings of the job.
        temporary: where job.json is written before it is renamed, for processes that start at the same time; its
            folder exists. Default: beside it.

    Raises:
        UserError: the folder belongs to a job with other settings.
    """
    check_partial(out)
    folder = partial_folder(out)
    job = folder / JOB
    if job.is_file():
        changed = _changed(read_object(job, "start over with --restart"), settings)
        if changed:
            raise UserError(f"{folder} holds an unfinished job that differs: {_list(changed)} {REMEDY}")
        return
    if not is_folder_output(out):
        delete(out)
    folder.mkdir(exist_ok=True)
    text = json.dumps(settings, indent=2)
    if temporary is None:
        with atomic_write(job) as path:
            path.write_text(text, encoding="utf-8")
    else:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, job)
    sync_folder(out.parent)


def delete(out: Path) -> None:
    """Delete OUT.partial, or all that a job made in its output folder."""
    check_partial(out)
    folder = partial_folder(out)
    if not is_folder_output(out):
        (folder / JOB).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return
    if folder.exists():
        _refuse_others(folder, MADE)  # a job begins in a folder without other files
    for name in MADE:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def delete_unless_locked(out: Path, journals: Iterable[Path]) -> None:
    """Delete what a job made in its folder.

    Args:
        out: output file or folder.
        journals: journals that a running job has open; those that do not exist are skipped.

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
    return differences(before, {**now, "scorer": same_model(before.get("scorer", {}), now["scorer"])})


def _list(changed: list[str]) -> str:
    return "; ".join(changed) + "."
