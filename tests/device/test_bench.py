"""bench/device without a GPU: a trivial mistake must not cost the one run on a device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from bench.cases.device import CASES
from bench.device import check, report
from bench.device.__main__ import main
from bench.device.clock import Clock
from bench.device.machine import machine
from bench.device.samples import SampleLog, read_log
from bench.device.timing import time_in_turn
from bench.ratios import ahead, ratio_of, verdict_of
from bench.records import read_rows

pytest.importorskip("triton")
from bench.device.variants import UNFUSED, VARIANTS, time_variants, variant
from main_kernels.backends.triton import configs

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"}
COUNTS = '<testsuites><testsuite tests="10" failures="1" errors="0" skipped="0"/></testsuites>'
NAMES = ["info_nce", "sigmoid_loss", "token_logprobs", "linear_kl", "segment_pool_mean", "segment_pool_attention"]


@pytest.fixture
def undo():
    yield
    torch.set_default_device(None)
    torch.compiler.set_stance("default")


@pytest.mark.slow
def test_every_row_is_measured_and_reported(tmp_path, capsys, undo):
    log, out = tmp_path / "samples.jsonl", tmp_path / "cpu.json"
    (tmp_path / "steps.tsv").write_text("build\t0\t31\ntests\t1\t90\nmemcheck\tmissing\t0\n")
    (tmp_path / "tests.log").write_text("1 failed, 9 passed\n")
    (tmp_path / "tests.xml").write_text(COUNTS)
    assert main(["peers", "--device", "cpu", "--smoke", "--log", str(log)]) == 0
    assert main(["report", str(log), "--steps", str(tmp_path), "-o", str(out)]) == 0
    assert "`info_nce`, forward" in capsys.readouterr().out
    made = json.loads(out.read_text())
    assert made["skipped"] == []
    assert [step["exit"] for step in made["steps"]] == ["0", "1", "missing"]
    assert made["steps"][1]["failures"] == "1"
    (tmp_path / "tests.xml").write_text(COUNTS[:30])  # killed while it was written
    assert "failures" not in report.read_steps(tmp_path)[1]
    assert [row["case"] for row in made["rows"]] == NAMES
    assert read_rows(out) == made["rows"]
    for row in made["rows"]:
        for name, run in row["runs"].items():
            assert "missing" in run or len(run["samples_s"]) == len(run["host_s"]) > 0, name
        for target in row["targets"]:
            assert ratio_of(row, target["run"], target["against"]).median > 0
            assert target["must"] > target["goal"]


def test_scoring_is_measured_and_reported(tmp_path, undo):
    log, out = tmp_path / "samples.jsonl", tmp_path / "cpu.json"
    assert main(["scoring", "--device", "cpu", "--smoke", "--log", str(log)]) == 0
    assert main(["report", str(log), "-o", str(out)]) == 0
    (row,) = read_rows(out)
    assert list(row["runs"]) == ["products", "ours", "ours_one_at_a_time", "ours_compiled"]
    assert all(len(run["samples_s"]) == 2 for run in row["runs"].values())
    assert row["differing"] == []


def test_an_interrupted_row_keeps_its_samples(tmp_path):
    log = SampleLog(tmp_path / "samples.jsonl")
    log.add("row", row="r", case="c", shape={"n": 1}, dtype="float32", floors=["floor"], phases={"ours": "forward"})

    def interrupted():
        if len(read_log([tmp_path / "samples.jsonl"])) > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_in_turn("r", {"floor": lambda: None, "ours": interrupted}, Clock("cpu"), log, 7)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"kind": "sample", "row": "r", "na')  # killed within a line
    SampleLog(tmp_path / "samples.jsonl").add("skipped", what="later")  # continues on a line of its own
    made = report.make_report(read_log([tmp_path / "samples.jsonl"]), [])
    assert len(made["rows"][0]["runs"]["ours"]["samples_s"]) >= 2
    assert made["skipped"] == ["later"]


def test_every_op_agrees_with_float64(tmp_path):
    log = SampleLog(tmp_path / "samples.jsonl")
    assert check.check_ops("cpu", log) == []
    assert check.check_ties("cpu", log) == []
    assert len(read_log([tmp_path / "samples.jsonl"])) == len(check.PUBLIC) * len(check.BOUNDS) + 8


def test_a_wrong_op_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(check.PUBLIC, "row_logsumexp", lambda q, k: q.sum(1) * (1 + 1e-3 * (q.dtype == torch.float32)))
    failures = check.check_ops("cpu", SampleLog(tmp_path / "samples.jsonl"))
    assert [failure.split(":")[0] for failure in failures] == ["row_logsumexp float32"]


def test_targets_are_judged_by_medians_and_peers():
    phases = {"ours_forward": "forward", "peer": "forward", "slower": "forward", "trains": "forward+backward"}
    rows = [
        {"kind": "machine", **machine("cpu"), "commit": None},  # a copy without git
        {"kind": "row", "row": "r", "case": "info_nce", "shape": {"n": 1}, "dtype": "x", "floors": ["products_1"]}
        | {"phases": phases},
    ]
    for name, seconds in {"ours_forward": 1.1, "products_1": 1.0, "peer": 1.05, "slower": 2, "trains": 0.1}.items():
        rows.append({"kind": "sample", "row": "r", "name": name, "seconds": seconds, "host_seconds": 0.1, "held": True})
    made = report.make_report(rows, [], commit="1a2b3c4")
    (row,) = made["rows"]
    assert row["machine"]["commit"] == "1a2b3c4"
    assert ratio_of(row, "ours_forward", "products_1").median == pytest.approx(1.1)
    assert verdict_of(row, row["targets"][0]) == "must"
    assert [(peer, quantity) for _, peer, quantity, _ in ahead(row)] == [("peer", "time")]
    assert "AHEAD OF US: peer, time 1.05" in report.table(made)


def test_variants_change_what_launches_read_and_are_all_timed(tmp_path):
    case = next(case for case in CASES if case.name == "info_nce")
    time_variants(case, case.tiny, "float32", Clock("cpu"), SampleLog(tmp_path / "samples.jsonl"), 1)
    made = report.make_report(read_log([tmp_path / "samples.jsonl"]), [])
    for row in made["rows"]:
        assert list(row["runs"]) == [*VARIANTS, UNFUSED]
        assert all(run["samples_s"] for run in row["runs"].values())
    before = configs.FUSED_REDUCE
    with variant("GROUP_M=4"):
        assert {tile.GROUP_M for tile in configs.FUSED_REDUCE if tile.architecture >= 90} == {4}
    assert before is configs.FUSED_REDUCE


@pytest.fixture
def script(tmp_path):
    """bench/device.sh in a folder of its own, with an nvidia-smi and a Python that do what the tests say."""
    for folder in ("bench", "bin"):
        (tmp_path / folder).mkdir()
    copied = tmp_path / "bench" / "device.sh"
    copied.write_text((ROOT / "bench" / "device.sh").read_text())

    def program(name: str, text: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(python: str, *words: str, **options) -> subprocess.CompletedProcess:
        program("python", f"echo $* >>{tmp_path}/calls\n{python}")
        return subprocess.run(["bash", copied, *words], env=environment, capture_output=True, text=True, **options)

    environment = {**ENVIRONMENT, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": "python"}
    program("nvidia-smi", 'case "$*" in *cap*) echo 9.0 ;; *) echo NVIDIA H100 80GB HBM3 ;; esac')
    program("ncu", "true")
    program("compute-sanitizer", "exit 9")
    return run


def steps(folder: Path) -> dict[str, str]:
    lines = (folder / "out" / "device" / "steps.tsv").read_text().splitlines()
    return {line.split("\t")[0]: line.split("\t")[1] for line in lines}


def test_the_script_runs_all_stages_and_packs_what_they_leave(script, tmp_path):
    (tmp_path / "out" / "device").mkdir(parents=True)
    (tmp_path / "out" / "device" / "samples-ours.jsonl").write_text("of an earlier commit\n")
    done = script('[[ $4 = time ]] && echo "{}" >>"$6"; [[ $4 = report ]] && echo "{}" >"${@: -1}"; true', "ours")
    assert done.returncode == 0, done.stderr
    names = ["check", "time", "variants", "ncu-info_nce", "ncu-token_logprobs", "ncu-linear_kl"]
    found = steps(tmp_path)
    assert [name for name in found if name not in ("build", "products")] == [*names, "tests", "sanitize", "memcheck"]
    assert {name for name, status in found.items() if status != "0"} == {"memcheck"}
    assert (tmp_path / "out" / "nvidia-h100-80gb-hbm3.json").read_text() == "{}\n"
    with tarfile.open(tmp_path / "out" / "device.tar.gz") as packed:
        assert packed.extractfile("device/samples-ours.jsonl").read() == b"{}\n"
        assert {"device/steps.tsv", "device/tests.log"} <= set(packed.getnames())


def test_a_killed_script_leaves_the_stages_that_ended(script, tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        script('case $4 in check) echo sample >>"$6" ;; time) sleep 30 ;; esac', "ours", "480", "kept", timeout=5)
    with tarfile.open(tmp_path / "kept" / "device.tar.gz") as packed:
        assert packed.extractfile("device/samples-ours.jsonl").read() == b"sample\n"


def test_the_script_begins_nothing_that_does_not_fit(script, tmp_path):
    assert script("true", "ours", "20").returncode == 0
    assert set(steps(tmp_path).values()) == {"out of time"}
    assert "device check" not in (tmp_path / "calls").read_text()
    assert script("true", "theirs").returncode == 2
    assert "expected a whole number" in script("true", "ours", "8 minutes").stderr


@pytest.mark.slow
def test_the_sanitizer_script_runs():
    command = [sys.executable, "-m", "bench.sanitize", "--device", "cpu"]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True)
