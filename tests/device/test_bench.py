"""bench/device.py and device.sh as far as they run without a GPU: a trivial mistake must not cost the one run on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"}
COUNTS = '<testsuites><testsuite tests="10" failures="1" errors="0" skipped="0"/></testsuites>'


@pytest.mark.slow
def test_every_row_is_measured(tmp_path):
    (tmp_path / "steps.tsv").write_text("build\t0\t31\ntests\t1\t90\nmemcheck\tmissing\t0\n")
    (tmp_path / "tests.log").write_text("1 failed, 9 passed\n")
    (tmp_path / "tests.xml").write_text(COUNTS)
    out = tmp_path / "cpu.json"
    command = [
        sys.executable,
        "-m",
        "bench.device",
        "--device",
        "cpu",
        "--smoke",
        "-o",
        str(out),
        "--logs",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["skipped"] == []
    assert [step["exit"] for step in report["evidence"]] == ["0", "1", "missing"]
    assert report["evidence"][1]["failures"] == "1"
    rows = {row["case"]: row for row in report["rows"]}
    assert list(rows) == ["info_nce", "token_logprobs", "linear_kl", "segment_pool_mean", "segment_pool_attention"]
    for row in rows.values():
        for name, contender in row["contenders"].items():
            assert "missing" in contender or (contender["samples_s"] and contender["computed"]), name
        for target in row["targets"]:
            assert target["ratio"] > 0
            assert target["must"] > target["goal"]


def test_the_script_is_bash():
    subprocess.run(["bash", "-n", "bench/device.sh"], cwd=ROOT, check=True)


@pytest.mark.slow
def test_what_the_sanitizers_watch_runs():
    command = [sys.executable, "-m", "bench.sanitize", "--device", "cpu"]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True)
