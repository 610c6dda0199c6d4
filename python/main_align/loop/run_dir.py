"""The folder of a run: one sub-folder a stage, there when the stage is done and not before.

run.json                what the run depends on; written first, compared when the run goes on
03-round1-train-forward/
    stage.json            what the stage did: counts, seconds, tokens/s, seed, digest of run.json's settings
    ...                   its output
04-....partial/         the stage at work; its folder takes the name above when it is complete
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ..data.atomic import (
    atomic_write,
    sync_folder,
)
from ..errors import UserError
from ..scoring.manifest import differences, read_object

STAGE_NAME = re.compile(r"\d\d+-[a-z0-9-]+(\.partial)?")
JOURNAL = ".journal"  # ending of what a stage keeps until it is done
RESULTS = ("report.json", "report.png")


class RunFolder:
    """The output folder of a run. Only the process that `lock`ed it writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Make the folder and keep other runs out of it. Raises UserError where one is at work."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{self.path} is a file; give a folder as output_dir") from None
        self._check_ours()
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self.path}: another run is at work there; wait for it or give another folder") from None

    def unlock(self) -> None:
        """Let other runs in."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def claim(self, settings: Mapping[str, Any], *, restart: bool) -> None:
        """Write run.json, or check that the run found there has the same settings.

        Raises UserError naming each setting that differs. `restart` throws the earlier run away.
        """
        path = self.path / "run.json"
        if restart or not path.is_file():
            self._discard()  # stages without a run.json are what a killed restart has left
        if path.is_file():
            changed = differences(_read_json(path), settings)
            if changed:
                raise UserError(
                    f"{self.path} holds a run with other settings: {'; '.join(changed)}. "
                    "Run again with the old settings, give another output_dir, or start over with --restart."
                )
            return
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def stage(self, name: str) -> Path:
        """The folder of a finished stage."""
        return self.path / name

    def done(self, name: str) -> bool:
        """Whether the stage is finished."""
        return (self.path / name / "stage.json").is_file()

    def manifest(self, name: str) -> dict[str, Any]:
        """What a finished stage did."""
        return _read_json(self.path / name / "stage.json")

    def partial(self, name: str) -> Path:
        """The folder in which a stage works."""
        return self.path / f"{name}.partial"

    def finish(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Write the stage's manifest, drop its journals and give its folder the stage's name."""
        work = self.partial(name)
        for path in work.glob(f"*{JOURNAL}"):
            path.unlink()
        (work / "stage.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in sorted(work.rglob("*")):
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        sync_folder(work)
        os.rename(work, self.stage(name))
        sync_folder(self.path)

    def _check_ours(self) -> None:
        strangers = sorted(path.name for path in self.path.iterdir() if not _ours(path.name))
        if strangers and not (self.path / "run.json").is_file():
            raise UserError(
                f"{self.path} holds other files ({', '.join(strangers[:3])}{' ...' if strangers[3:] else ''}) and no "
                "run of this loop; give an empty or a new folder as output_dir"
            )

    def _discard(self) -> None:
        """Remove the earlier run, run.json first; what others put into the folder stays."""
        (self.path / "run.json").unlink(missing_ok=True)
        for path in self.path.iterdir():
            if STAGE_NAME.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)
            elif path.name in RESULTS:
                path.unlink()


def _ours(name: str) -> bool:
    return name in (".lock", "run.json", "run.json.tmp", *RESULTS) or bool(STAGE_NAME.fullmatch(name))


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path, "start over with --restart, or give another output_dir")
