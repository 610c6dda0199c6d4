"""SIGKILL at random moments to jobs with worker processes: python -m tests.align.scoring.jobs.random_kills [KILLS].

A job is killed, its command or one of its workers, and run again until it is complete; then its bytes are compared.
The suite runs only a few of these kills, since each costs the start of several processes.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from main_align.scoring.score_file import score_rows_of

from tests.align import forked
from tests.align.scoring.jobs.test_folders import FAKE, contents, scored, write_data

SLOW = FAKE | {"seconds": 0.05}


def job(out: str, data: str, workers: int) -> None:
    scored(Path(out), data, SLOW, workers=workers, log=print)


def workers_of(process: BaseProcess) -> list[int]:
    """The living worker processes of a job."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def random_kills(folder: Path, kills: int, seed: int = 0) -> tuple[int, int]:
    """Kill jobs `kills` times, and return the numbers of complete jobs and of kills of workers."""
    data, chance = write_data(folder), random.Random(seed)
    scored(folder / "whole", data)
    jobs = killed = of_workers = 0
    while killed < kills:
        out, log, workers = folder / f"scored-{jobs}", folder / "log", chance.choice((1, 2))
        process = forked.start(job, str(out), data, workers, log=log)
        while process.is_alive() and killed < kills:
            began = time.monotonic()
            while process.is_alive() and not (out / "job.json").exists() and time.monotonic() - began < 60:
                time.sleep(0.02)  # nothing to lose before
            process.join(chance.uniform(0, 3))
            alive = workers_of(process)
            if process.is_alive() and alive and chance.random() < 0.5:
                os.kill(chance.choice(alive), signal.SIGKILL)
                killed, of_workers = killed + 1, of_workers + 1
            elif process.is_alive():
                process.kill()
                process.join()
                killed += 1
                end = time.monotonic() + 30
                while any(map(is_alive, alive)) and time.monotonic() < end:
                    time.sleep(0.02)
                assert not any(map(is_alive, alive)), "workers end with their job"
                process = forked.start(job, str(out), data, workers, log=log)
        if forked.end_of(process) != "exit 0":  # two workers were killed at one unit, or one while it loaded
            assert "UserError: " in log.read_text(), log.read_text()
            assert forked.end_of(forked.start(job, str(out), data, workers, log=log)) == "exit 0", log.read_text()
        assert contents(out) == contents(folder / "whole")
        rows = list(score_rows_of(out))
        assert len(rows) == len({row["id"] for row in rows}) == 110
        jobs += 1
    return jobs, of_workers


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
        jobs, of_workers = random_kills(Path(folder), kills)
        print(f"{kills} kills, {of_workers} of them of workers: {jobs} jobs complete, each with the same bytes")
