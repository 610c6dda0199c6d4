"""RunDir: the output folder of a run, with one sub-folder per finished stage.

run.json                the settings and inputs that determine the result; written first, compared on resume
sessions.json           when the command was started, and the stages that were finished by then
03-round1-train-forward/
    stage.json            manifest: counts, seconds, tokens/s, seed, digest of run.json's settings
    ...                   the stage's output
04-....partial/         the running stage; renamed to the name above when complete
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from ..data.atomic import atomic_write, lock, sync_folder
from ..data.write import to_document
from ..errors import UserError
from ..scoring.manifest import differences, read_object

STAGE_NAME = re.compile(r"\d\d+-[a-z0-9-]+(\.partial)?")
JOURNAL_SUFFIX = ".journal"  # of files that a stage keeps only until it is complete
SESSIONS = "sessions.json"
REPORTS = ("report.json", "report.png", SESSIONS)


class RunDir:
    """Manage the output folder of a run. Only the process that locked it may write to it.

    Args:
        path: the folder; created by `lock`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Create the folder and lock it. Raises UserError if another run holds the lock."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{self.path} is a file; give a folder as output_dir") from None
        self._check_no_foreign_files()
        self._lock = (self.path / ".lock").open("w")
        if not lock(self._lock):
            raise UserError(f"{self.path}: another run is using this folder; wait for it or give another output_dir")

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def claim(self, settings: Mapping[str, Any], *, restart: bool) -> None:
        """Write run.json, or check that the existing run has the same settings.

        Args:
            settings: everything that determines the result.
            restart: delete the existing run first.

        Raises:
            UserError: the existing run has other settings; the message names each difference.
        """
        path = self.path / "run.json"
        if restart or not path.is_file():
            self._delete_run()  # a restart that was killed leaves stages without a run.json
        if path.is_file():
            changed = differences(_read_json(path), settings)
            if changed:
                raise UserError(
                    f"{self.path} contains a run with other settings: {'; '.join(changed)}. "
                    "Use the old settings, give another output_dir, or start over with --restart."
                )
            return
        with atomic_write(path) as temporary:
            temporary.write_text(to_document(settings), encoding="utf-8")

    def begin_session(self, stages: Sequence[str]) -> None:
        """Note the time and the finished stages, unless all are finished.

        Args:
            stages: the names of all stages.
        """
        finished = [name for name in stages if self.is_finished(name)]
        if len(finished) < len(stages):
            path = self.path / SESSIONS
            earlier = _read_json(path)["sessions"] if path.is_file() else []
            session = {"started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "finished": finished}
            with atomic_write(path) as temporary:
                temporary.write_text(to_document({"sessions": [*earlier, session]}), encoding="utf-8")

    def read_sessions(self, stages: Sequence[str]) -> list[dict[str, Any]]:
        """Return the time of each session's start and the stages that it finished.

        Args:
            stages: the names of all stages, which are finished.
        """
        sessions = _read_json(self.path / SESSIONS)["sessions"]
        ends = [*(session["finished"] for session in sessions[1:]), list(stages)]
        return [
            {"started": session["started"], "stages": [name for name in end if name not in session["finished"]]}
            for session, end in zip(sessions, ends, strict=True)
        ]

    def stage_dir(self, name: str) -> Path:
        """Return the folder of a finished stage."""
        return self.path / name

    def is_finished(self, name: str) -> bool:
        """Return True if the stage is finished."""
        return (self.path / name / "stage.json").is_file()

    def read_manifest(self, name: str) -> dict[str, Any]:
        """Return the manifest of a finished stage."""
        return _read_json(self.path / name / "stage.json")

    def partial_dir(self, name: str) -> Path:
        """Return the folder of a running stage."""
        return self.path / f"{name}.partial"

    def finish(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Write the stage's manifest, delete its journals and rename its folder to the stage's name."""
        work_dir = self.partial_dir(name)
        for path in work_dir.glob(f"*{JOURNAL_SUFFIX}"):
            path.unlink()
        (work_dir / "stage.json").write_text(to_document(manifest), encoding="utf-8")
        for path in sorted(work_dir.rglob("*")):
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        sync_folder(work_dir)
        os.rename(work_dir, self.stage_dir(name))
        sync_folder(self.path)

    def _check_no_foreign_files(self) -> None:
        foreign = sorted(path.name for path in self.path.iterdir() if not _belongs_to_run(path.name))
        if foreign and not (self.path / "run.json").is_file():
            raise UserError(
                f"{self.path} contains other files ({', '.join(foreign[:3])}{' ...' if foreign[3:] else ''}) but no "
                "run of this loop; give an empty or a new folder as output_dir"
            )

    def _delete_run(self) -> None:
        """Delete the existing run, run.json first; keep all other files in the folder."""
        (self.path / "run.json").unlink(missing_ok=True)
        for path in self.path.iterdir():
            if STAGE_NAME.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)
            elif path.name.removesuffix(".tmp") in REPORTS:
                path.unlink()


def _belongs_to_run(name: str) -> bool:
    files = (".lock", "run.json", *REPORTS)
    return name.removesuffix(".tmp") in files or bool(STAGE_NAME.fullmatch(name))


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path, "start over with --restart, or give another output_dir")
