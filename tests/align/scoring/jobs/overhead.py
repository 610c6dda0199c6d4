"""Processor seconds of jobs besides the model: python -m tests.align.scoring.jobs.overhead [ROWS [ENGINE ...]].

The model is a stand-in that answers at once. Each job runs with few and with many units. Counted are the user and
system times of all processes that the job starts, Ray's included, as /proc last showed them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

FAKE = {"class": "tests.align.fakes:FakeScorer", "bank": 1000, "per_pack": 16}
FILES = 4
SECONDS = 0.1  # between two looks at /proc
TICKS = os.sysconf("SC_CLK_TCK")


def run_job(engine: str, data: str, out: str, window: int) -> None:
    from main_align.scoring import job

    if engine == "ray":
        from main_align.ray.actors import RayActors  # loads transformers

        job.run_job(RayActors(2, FAKE, print), data, out, sort_window=window)
    else:
        name = out + ".parquet" if engine == "file" else out
        job.score_file(FAKE, data, name, sort_window=window, workers=2 if engine == "processes" else 1)


def processor_seconds(command: list[str]) -> float:
    """Run a command, and add up the times of the processes that inherit its environment."""
    mark = uuid4().hex
    process = subprocess.Popen(command, env=os.environ | {"OVERHEAD_MARK": mark})
    times: dict[tuple[str, str], float] = {}
    is_over = False
    while not is_over:
        is_over = process.poll() is not None
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                key = folder.name, stat[19]
                if key in times or mark.encode() in (folder / "environ").read_bytes():
                    times[key] = (int(stat[11]) + int(stat[12])) / TICKS
                    is_over &= stat[0] == "Z"
            except OSError:
                pass  # it has ended
        time.sleep(SECONDS)
    if process.returncode:
        raise SystemExit(process.returncode)
    return sum(times.values())


def write_data(folder: Path, rows: int) -> str:
    for file in range(FILES):
        lines = []
        for n in range(rows // FILES):
            row = {"instruction": f"say {n} of {file} " + "word " * 20, "response": f"answer {n} " + "text " * 60}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{file}.jsonl").write_text("".join(lines))
    return str(folder)


def main(rows: int, engines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "data").mkdir()
        data = write_data(Path(temporary) / "data", rows)
        for units in (2 * FILES, 32 * FILES):
            for engine in engines:
                out = f"{temporary}/{engine}-{units}"
                arguments = [engine, data, out, str(rows // units)]
                seconds = processor_seconds([sys.executable, "-m", __spec__.name, "job", *arguments])
                print(
                    f"{engine}, {rows} rows, {units} units: {seconds:.2f} s; load {os.getloadavg()[0]:.1f}", flush=True
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        engine, data, out, window = sys.argv[2:]
        run_job(engine, data, out, int(window))
    else:
        rows, *engines = sys.argv[1:] or ["16384"]
        main(int(rows), engines or ["file", "folder", "processes", "ray"])
