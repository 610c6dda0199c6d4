"""Jobs with worker processes, killed for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.align.scoring.jobs.random_kills import random_kills


@pytest.mark.longest
def test_killed_commands_and_workers_lose_and_double_nothing(tmp_path: Path) -> None:
    jobs, of_workers = random_kills(tmp_path, 3, seed=1)
    assert jobs >= 1
    assert of_workers < 3
