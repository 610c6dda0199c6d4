"""The recipes of CONTRIBUTING.md: every diff applies to the code as it is, and the check below it passes.

A recipe is a section with a ``diff`` block and, below it, a ``python`` block of assertions. All diffs are applied to
one copy of the packages, and all checks run in one process.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT, recipes

PAGE = ROOT / "CONTRIBUTING.md"
IGNORED = shutil.ignore_patterns("__pycache__")
RECIPES = ["An objective", "A score column", "An input format", "A command", "A Triton tile"]
ADDED = {
    "decoupled_contrastive": "decorrelated_contrastive",
    "length_ratio": "length_difference",
    '"request"': '"ticket"',
    '"reply"': '"answer"',
    "columns": "statuses",
}
"""the names that the recipes add, and those of an addition that someone else has made at the same place"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in ("main_kernels", "python", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=IGNORED)
    return tmp_path


def add(tree: Path, title: str, diff: str) -> None:
    # Without --unidiff-zero, git takes a hunk that ends in an addition for the end of the file.
    command = ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", "-"]
    applied = subprocess.run(command, cwd=tree, input=diff, text=True, capture_output=True)
    assert applied.returncode == 0, f"{title}: {applied.stderr}"


def run(tree: Path, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), str(tree / "python")])}
    ran = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def renamed(diff: str) -> str:
    """Return the diff of an addition at the same place under other names. Lines of the code as it is are kept."""
    lines = diff.splitlines(keepends=True)
    for place, line in enumerate(lines):
        if line.startswith("+"):
            for name, other in ADDED.items():
                if name != "columns" or "scoring" not in line:  # the command's name, not that of the module
                    line = line.replace(name, other)
            lines[place] = line
    return "".join(lines)


@pytest.mark.slow
def test_the_recipes_apply_and_their_checks_pass(tree):
    """In sequence, on one tree in which the same places have had other additions first."""
    sections = recipes(PAGE.read_text(encoding="utf-8"))
    assert [title for title, _, _ in sections] == RECIPES
    for title, diffs, _ in sections:
        for diff in diffs:
            add(tree, title, renamed(diff))
    for title, diffs, checks in sections:
        assert checks, f"{title}: no python block checks the diff"
        for diff in diffs:
            add(tree, title, diff)
    (tree / "checks.py").write_text("\n".join(check for _, _, checks in sections for check in checks))
    run(tree, "checks.py")
    run(tree, "docs/generate.py")
    assert "length_difference" in (tree / "docs" / "scoring.md").read_text(encoding="utf-8")
    assert "## main-align columns" in (tree / "docs" / "cli.md").read_text(encoding="utf-8")


def test_a_recipe_only_adds_lines():
    for title, diffs, _ in recipes(PAGE.read_text(encoding="utf-8")):
        for line in "".join(diffs).splitlines():
            assert not line.startswith("-") or line.startswith("--- "), f"{title}: {line}"


def test_the_tests_that_are_named_exist():
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert not [name for name in named if f"def {name}(" not in code]


def test_a_recipe_is_a_section_with_a_diff():
    text = "# Page\n\n## One\n\n```diff\n+a\n```\n\n```python\nassert 1\n```\n\n## Two\n\n```python\nassert 0\n```\n"
    assert recipes(text) == [("One", ["+a\n"], ["assert 1\n"])]


def test_the_map_has_every_folder():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add something")[0]
    for package in (ROOT / "main_kernels", ROOT / "python" / "main_align", ROOT / "bench"):
        for folder in package.rglob("__init__.py"):
            assert f"{folder.parent.name}/" in page, folder.parent
