"""The entry point: with and without the optional packages, on an ASCII terminal, and after common mistakes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from main_align import __main__ as entry
from main_align import cli, models
from main_align.cli import doctor
from main_align.data.atomic import atomic_write
from main_align.environment import (
    installed,
)
from main_align.models import smollm2

from tests.align.tiny_models import tiny_model_folder

PAIRS = [{"instruction": f"say {n}", "response": f"it is {n * n}"} for n in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


@pytest.fixture
def run(monkeypatch):
    """Call the entry point as the shell would, and return its exit code."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["main-align", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            entry.main()
        return int(stopped.value.code or 0)

    return call


def without(monkeypatch, *packages: str) -> None:
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "main_align.cli.app", raising=False)


INTERRUPTED = """
import sys

class Interrupt:
    def find_spec(self, name, *rest):
        if name == {name!r}:
            raise KeyboardInterrupt

for loaded in ("importlib", "typing", "signal"):
    sys.modules.pop(loaded, None)
sys.meta_path.insert(0, Interrupt())
from main_align.__main__ import main
sys.argv = ["main-align", "--version"]
main()
"""


@pytest.mark.parametrize(
    "name", ["importlib", "typing", "signal", "main_align.errors", "main_align.cli", "typer", "main_align.cli.app"]
)
def test_ctrl_c_during_the_imports_ends_quietly(name: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED.format(name=name)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) in ((130, ""), (0, "")), name  # 0: this version does not import it
    if name.startswith("main_align"):
        assert ended.returncode == 130


def test_the_version_is_printed_without_extras(run, monkeypatch, capsys):
    for missing in ((), ("typer",)):
        without(monkeypatch, *missing)
        assert run("--version") == 0
        assert capsys.readouterr().out == f"main-align {installed('main-kernels')}\n"


@pytest.mark.parametrize("missing", [(), ("typer",)])
@pytest.mark.parametrize("argument", ["--version", "doctor"])
def test_a_closed_pipe_ends_a_command_quietly(run, monkeypatch, capfd, missing, argument):
    monkeypatch.setattr(doctor, "run_checks", lambda: [doctor.Check("python", "3.11")] * 1000)
    without(monkeypatch, *missing)
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), open(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert run(argument) == 1
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_under_stdout_is_one_line(run, monkeypatch, capfd):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert run("--version") == 1
    log = capfd.readouterr().err
    assert log.startswith("main-align: [Errno 28]")
    assert log.count("\n") == 1


def test_a_closed_stdout_is_no_error(run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert run("--version") == 0


def test_a_closed_stdin_is_named(run, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(sys, "stdin", None)
    assert run("score", "-", "-o", tmp_path / "s.csv") == 1
    assert capfd.readouterr().err == "main-align: -: standard input is closed; pipe the data into it, or name a file\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_deletes_temporary_files(run, monkeypatch, capfd, tmp_path, number):
    def write_until_the_signal():
        with atomic_write(tmp_path / "out") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(10)

    monkeypatch.setattr(doctor, "run_checks", write_until_the_signal)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert run("doctor") == 128 + number
    finally:
        signal.signal(number, before)
    assert capfd.readouterr().err == "main-align: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_nohup_is_respected(run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("--version") == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_broken_pipe_to_another_process_keeps_its_message(run, monkeypatch, capfd):
    def lost_worker():
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(doctor, "run_checks", lost_worker)
    assert run("doctor") == 1
    assert "Broken pipe" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [("score", "x.jsonl", "-o", "y.csv"), ("--help",), ()])
def test_without_the_extras_the_install_line_is_printed(run, monkeypatch, capsys, arguments):
    without(monkeypatch, "typer")
    assert run(*arguments) == 1
    assert "pip install 'main-kernels[hf]'" in capsys.readouterr().err


def test_doctor_works_with_torch_alone(run, monkeypatch, capsys):
    without(monkeypatch, "typer", "rich", "transformers", "safetensors", "pyarrow", "datasets", "huggingface_hub")
    # Both modules are imported again, so that an import of a missing package at their top fails.
    for package, module in ((cli, doctor), (models, smollm2)):
        monkeypatch.setattr(package, module.__name__.rpartition(".")[2], module)  # restored after the test
        monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setattr("main_align.environment.installed", lambda name: "1.0" if name == "torch" else None)
    assert run("doctor") == 1
    lines = capsys.readouterr().out.splitlines()
    missing = {line.split()[1] for line in lines if line.endswith(" not installed")}
    assert missing == {*doctor.REQUIRED, *doctor.OPTIONAL}
    assert {"trl", "peft", "accelerate", "gguf", "sentencepiece"} <= missing
    bad = {line.split()[1] for line in lines if line.startswith("!!")}
    assert bad == {*doctor.REQUIRED, "default"}
    assert not [line for line in lines if "Error" in line]


def test_doctor_names_packages_below_the_lowest_version(monkeypatch):
    required = ["torch>=2.6", 'transformers>=4.56; extra == "hf"', 'trl>=0.20.0; extra == "train"', "ray[data]>=2.40"]
    required += ['transformers>=5.17; extra == "train"']  # doctor is about scoring
    monkeypatch.setattr("main_align.environment.requires", lambda name: required)
    found = {"torch": "2.10.0+cpu", "transformers": "4.9.1", "trl": "0.20", "ray": "2.39.0rc1"}
    monkeypatch.setattr(doctor, "installed", lambda name: found.get(name, "99"))
    monkeypatch.setattr("torch.__version__", found["torch"])
    monkeypatch.setattr("pkgutil.resolve_name", lambda name: None)  # what is installed here may be none of it
    checks = {check.name: check for check in doctor.run_checks()}
    assert checks["torch"].state == "2.10.0+cpu"
    old = checks["transformers"]
    assert (old.state, old.ok, old.remedy) == ("4.9.1, older than 4.56", False, "pip install 'main-kernels[hf]'")
    assert checks["trl"].state == "0.20"
    assert (checks["ray"].state, checks["ray"].ok) == ("2.39.0rc1, older than 2.40", True)
    assert "main-kernels[ray]" in checks["ray"].remedy


@pytest.mark.parametrize(("name", "used"), [("ray", "ray.data"), ("safetensors", "safetensors.torch"), ("trl", "trl")])
def test_doctor_tries_what_is_used_of_a_package(monkeypatch, name, used):
    def resolve(entry):  # type: ignore[no-untyped-def]
        if entry.partition(":")[0] == used:
            raise ModuleNotFoundError("No module named 'attrs'")

    monkeypatch.setattr("pkgutil.resolve_name", resolve)
    monkeypatch.setattr(doctor, "installed", lambda name: "99")
    (check,) = [check for check in doctor.run_checks() if "not usable" in check.state]
    assert (check.name, check.ok) == (name, name in doctor.OPTIONAL)
    assert check.state == "99, not usable: ModuleNotFoundError: No module named 'attrs'"
    assert check.remedy.startswith("pip install 'main-kernels[")


def test_doctor_finds_the_packages_that_scoring_needs():
    checks = {check.name: check for check in doctor.run_checks()}
    assert all(checks[name].ok for name in doctor.REQUIRED)


def test_doctor_checks_the_packages_of_every_extra_for_users():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    extras = re.findall(r"^(hf|train|flash|ray|sentence-transformers) = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    packages = {name for _, listed in extras for name in re.findall(r'"([\w-]+)[^"]*>=', listed)}
    assert len(extras) == 5
    assert packages <= {*doctor.REQUIRED, *doctor.OPTIONAL}


def test_doctor_says_how_to_get_the_kernels_that_no_compiler_built(monkeypatch):
    """It said "ok", and a second `pip install` would take the same wheel from pip's cache."""
    import main_kernels

    for state, remedy in (("not available (main_kernels._C did not load)", doctor.BUILD_KERNELS), ("C++ kernels", "")):
        monkeypatch.setattr(main_kernels, "backend_report", lambda state=state: {"cpu": state, "plain": "torch"})
        backends = {check.name: check for check in doctor.run_checks() if check.name.startswith("backend")}
        assert backends["backend cpu"] == doctor.Check("backend cpu", state, remedy=remedy)
        assert not backends["backend plain"].remedy


def test_doctor_reports_the_choice_of_dtype_auto(monkeypatch):
    for fast, words in ((True, "--dtype auto selects it"), (False, "--dtype auto selects float32")):
        monkeypatch.setattr("main_kernels.processor.has_fast_bfloat16", lambda fast=fast: fast)
        (state,) = (check.state for check in doctor.run_checks() if check.name == "bfloat16")
        assert words in state


def test_an_ascii_terminal_gets_escapes(run, monkeypatch, tmp_path, pairs, model):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run("score", pairs, "-o", tmp_path / "\u00fc.csv", "--model", model) == 0
    sys.stdout.flush()
    assert "\\xfc.csv" in raw.getvalue().decode("ascii")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps:7"])
def test_an_unavailable_device_is_refused(run, capsys, tmp_path, pairs, model, device):
    assert run("score", pairs, "-o", tmp_path / "o.csv", "--model", model, "--device", device) == 1
    assert f"device '{device}' cannot be used here" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", '{"format": 1, "inp', "[]", "\ufffd"])
def test_a_torn_job_file_is_refused_until_restart(run, capsys, tmp_path, pairs, model, text):
    out = tmp_path / "o.csv"
    (tmp_path / "o.csv.partial").mkdir()
    (tmp_path / "o.csv.partial" / "job.json").write_text(text)
    assert run("score", pairs, "-o", out, "--model", model) == 1
    assert "job.json is damaged; start over with --restart" in capsys.readouterr().err
    assert run("score", pairs, "-o", out, "--model", model, "--restart") == 0


def test_a_file_at_the_path_of_unfinished_work_is_kept(run, capsys, tmp_path, pairs):
    (tmp_path / "o.csv.partial").write_text("mine")
    for more in ((), ("--restart",)):
        assert run("score", pairs, "-o", tmp_path / "o.csv", "--model", "not-loaded", *more) == 1
        assert "o.csv.partial is a file" in capsys.readouterr().err
    assert (tmp_path / "o.csv.partial").read_text() == "mine"
