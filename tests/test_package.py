"""The distribution: what an editable install and the sdist hold, and that CUDA is built by choice only."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch) -> dict[str, Any]:
    """The names of setup.py and, under "setup", the arguments of its setup()."""
    pytest.importorskip("pybind11")
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    return runpy.run_path(str(ROOT / "setup.py")) | {"setup": given}


def test_an_editable_install_is_paths_that_type_checkers_read(script):
    written = {}
    wheel = SimpleNamespace(writestr=written.__setitem__)
    command = script["setup"]["cmdclass"]["editable_wheel"](setuptools.Distribution({"name": "main-kernels"}))
    with command._select_strategy("main_kernels-1", "tag", "build") as strategy:
        strategy(wheel, [], {})
    ((name, text),) = written.items()
    assert name.endswith(".pth")
    folders = [Path(line) for line in text.splitlines()]
    assert all(folder.is_dir() for folder in folders)
    for package in script["setup"]["packages"]:
        assert any((folder / package.replace(".", "/") / "__init__.py").is_file() for folder in folders), package
    assert all((ROOT / home / "py.typed").is_file() for home in ("main_kernels", "python/main_align"))


@pytest.mark.parametrize(("choice", "with_cuda"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_cuda_is_built_where_it_was_chosen_not_where_nvcc_is(script, monkeypatch, choice, with_cuda):
    monkeypatch.setattr("shutil.which", lambda _: "/somewhere/nvcc")
    monkeypatch.delenv("MAIN_KERNELS_CUDA", raising=False)
    if choice is not None:
        monkeypatch.setenv("MAIN_KERNELS_CUDA", choice)
    build, asked = _build(script, monkeypatch)
    build()
    assert asked == (["/somewhere/nvcc"] if with_cuda else [])


@pytest.mark.parametrize(
    ("choice", "message"), [("1", "needs nvcc on the path"), ("yes", "expected 0 or 1, got 'yes'")]
)
def test_a_choice_that_cannot_be_met_fails_the_build(script, monkeypatch, choice, message):
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setenv("MAIN_KERNELS_CUDA", choice)
    with pytest.raises(SystemExit, match=message):
        _build(script, monkeypatch)[0]()


def _build(script, monkeypatch):
    """A call that builds the extension without a compiler, and the nvcc's that were asked to compile."""
    kind = script["setup"]["cmdclass"]["build_ext"]
    asked: list[str] = []
    monkeypatch.setattr(kind, "_compiles", lambda self, flag: False)
    monkeypatch.setattr(kind, "_add_cuda", lambda self, ext, nvcc: asked.append(nvcc))
    monkeypatch.setattr(kind.__base__, "build_extension", lambda self, ext: None)
    command = kind(setuptools.Distribution({"name": "main-kernels"}))
    (extension,) = script["setup"]["ext_modules"]
    return lambda: command.build_extension(extension), asked


def test_the_sdist_holds_tests_docs_examples_and_bench(tmp_path):
    pytest.importorskip("pybind11")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": ""})
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    folders = ("tests", "docs", "examples", "bench", "tools", "csrc", "main_kernels", "python/main_align")
    made = (".pyc", ".so")
    there = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in made
    }
    assert there - held == set()
    assert {"Makefile", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= held
    assert not [name for name in held if name.endswith(made)]
