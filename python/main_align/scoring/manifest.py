"""read_manifest, write_manifest, is_folder_output: the input, model, settings and column definitions of an output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.atomic import atomic_write
from ..data.write import to_document
from ..errors import UserError


def is_folder_output(out: Path) -> bool:
    """Return True if scores go to a folder of parts: an existing folder, or a name without an ending."""
    return out.is_dir() or not out.suffix


def manifest_path(out: Path) -> Path:
    """Return the path OUT.manifest.json, or OUT/manifest.json in a folder."""
    return out / "manifest.json" if is_folder_output(out) else out.with_name(out.name + ".manifest.json")


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of `out` atomically."""
    with atomic_write(manifest_path(out)) as temporary:
        temporary.write_text(to_document(manifest), encoding="utf-8")


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Return the manifest of `out`, or None if there is none.

    Raises:
        UserError: the manifest is damaged.
    """
    path = manifest_path(out)
    if not path.is_file():
        return None
    remedy = "delete it, or score again with --restart"
    manifest = read_object(path, remedy)
    try:
        manifest["settings"]["input"]["digest"]
    except (KeyError, TypeError):
        raise UserError(f"{path} is damaged; {remedy}") from None
    return manifest


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file that a job wrote.

    Args:
        path: the file.
        remedy: advice that ends the error message.

    Raises:
        UserError: the file holds no complete JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged; {remedy}")
    return value


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one sentence for each setting that differs; nested settings have dotted names.

    Args:
        before: old settings.
        now: new settings.
        prefix: dotted name of the enclosing setting, with a final dot.
    """
    found: list[str] = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} was {old!r}, now {new!r}")
    return found
