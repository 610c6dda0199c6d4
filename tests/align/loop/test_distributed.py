"""Processes of torchrun find each other, on a machine without a GPU too."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl")

from main_align.loop.distributed import Processes
from main_align.training import MutualAlignmentConfig

from tests.align.forked import run_ranks
from tests.align.tiny_models import cpu_only


def _processes(folder: str) -> None:
    processes = Processes()
    assert (processes.world_size, processes.device.type) == (2, "cpu")
    assert processes.broadcast(f"of rank {processes.rank}") == "of rank 0"
    (Path(folder) / f"{processes.rank}").touch()
    processes.shutdown()


def _trainer_settings(folder: str) -> None:
    assert MutualAlignmentConfig(output_dir=folder).world_size == 2
    Processes().shutdown()


@cpu_only("two processes on one device")
def test_processes_find_each_other_without_being_sent_to_the_cpu(tmp_path: Path) -> None:
    run_ranks(2, _processes, str(tmp_path), folder=tmp_path)
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()


@cpu_only("two processes on one device")
def test_the_trainers_settings_count_all_processes(tmp_path: Path) -> None:
    run_ranks(2, _trainer_settings, str(tmp_path), folder=tmp_path)
