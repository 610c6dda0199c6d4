"""The recipes of CONTRIBUTING.md: every diff applies to the code as it is, and the check below it passes.

A recipe is a section with a ``diff`` block and, below it, a ``python`` block of assertions. All diffs are applied to
one copy of the packages, and all checks run in one process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from .pages import ROOT, recipes

PAGE = ROOT / "CONTRIBUTING.md"
IGNORED = shutil.ignore_patterns("__pycache__")


@pytest.mark.slow
def test_the_recipes_apply_and_their_checks_pass(tmp_path):
    sections = recipes(PAGE.read_text(encoding="utf-8"))
    if not sections:
        pytest.skip("CONTRIBUTING.md has no diffs")
    for folder in ("main_kernels", "python", "docs", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=IGNORED)
    for title, diffs, checks in sections:
        assert checks, f"{title}: no python block checks the diff"
        for diff in diffs:
            apply = ["git", "apply", "--whitespace=nowarn", "-"]
            applied = subprocess.run(apply, cwd=tmp_path, input=diff, text=True, capture_output=True)
            assert applied.returncode == 0, f"{title}: {applied.stderr}"
    script = tmp_path / "checks.py"
    script.write_text("\n".join(check for _, _, checks in sections for check in checks))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(tmp_path / "python")])}
    command = [sys.executable, str(script)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr


def test_a_recipe_is_a_section_with_a_diff():
    text = "# Page\n\n## One\n\n```diff\n+a\n```\n\n```python\nassert 1\n```\n\n## Two\n\n```python\nassert 0\n```\n"
    assert recipes(text) == [("One", ["+a\n"], ["assert 1\n"])]


def test_the_map_has_every_folder():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add something")[0]
    for package in (ROOT / "main_kernels", ROOT / "python" / "main_align", ROOT / "bench"):
        for folder in package.rglob("__init__.py"):
            assert f"{folder.parent.name}/" in page, folder.parent
