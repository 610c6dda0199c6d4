"""Ray itself: a job with actors, one of which dies. Skipped where Ray is not installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ray = pytest.importorskip("ray")

from main_align.errors import UserError  # noqa: E402
from main_align.ray.actors import RayActors  # noqa: E402
from main_align.scoring.job import run_job  # noqa: E402

from tests.align.scoring.jobs.test_folders import FAKE, contents, data, scored  # noqa: E402, F401


@pytest.mark.longest
def test_actors_give_the_bytes_of_one_process_though_one_dies(tmp_path: Path, data: str) -> None:  # noqa: F811
    said: list[str] = []
    scored(tmp_path / "whole", data)
    (tmp_path / "dies").touch()
    mortal = FAKE | {"dies": str(tmp_path / "dies")}
    run_job(RayActors(2, mortal, said.append), data, tmp_path / "scored", sort_window=6)
    assert contents(tmp_path / "scored") == contents(tmp_path / "whole")
    assert len(said) == 1
    assert "another worker takes over" in said[0]


@pytest.mark.longest
def test_an_error_in_an_actor_is_the_users_own(tmp_path: Path, data: str) -> None:  # noqa: F811
    wrong = {"model": str(tmp_path / "absent")}
    with pytest.raises(UserError, match="absent"):
        run_job(RayActors(1, wrong, print), data, tmp_path / "scored")
    assert not ray.is_initialized(), "the actors and Ray end with the job"


def test_actors_without_a_place_or_memory_or_disk_are_reported() -> None:
    def died(result: Any) -> None:
        raise ray.exceptions.RayActorError(error_msg="out of memory\nmore")

    said: list[str] = []
    pool = RayActors(8, FAKE, said.append, gpus=0.5)
    pool._ray = SimpleNamespace(
        wait=lambda results, timeout: ([], results),
        available_resources=lambda: {"CPU": 9.0, "GPU": 2.0},
        get=died,
        exceptions=ray.exceptions,
    )
    with pytest.raises(UserError, match=r"an actor died while it loaded the model \(.*out of memory\)"):
        pool._loaded(None)
    full = OSError(28, "No space left on device")
    pool._ray.get = lambda result: (_ for _ in ()).throw(ray.exceptions.RayTaskError("run", "", full))
    with pytest.raises(UserError, match=r"No space left on device. Check the path"):
        pool._get(None)
    assert said == ["still waiting for 8 actors with one CPU and 0.5 GPUs each; free in Ray: 9 CPUs, 2 GPUs"]
