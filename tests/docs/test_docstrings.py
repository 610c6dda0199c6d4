"""Tests of tools/check_docstrings.py."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "check_docstrings.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_docstrings", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def messages(check, tmp_path, source):
    file = tmp_path / "module.py"
    file.write_text(source)
    (definition,) = [n for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return [message for _, message in check.undocumented(file, definition)]


@pytest.mark.parametrize("word", ["What", "How", "Which", "Whether", "Those", "That", "From"])
def test_a_forbidden_opening_is_found(check, tmp_path, word):
    file = tmp_path / "module.py"
    file.write_text(f'"""Summary."""\n\n\ndef _f():\n    """{word} is returned."""\n')
    assert [line for line, _ in check.openings(file)] == [5]


def test_each_parameter_needs_an_entry_of_its_own(check, tmp_path):
    source = 'def f(a, b, c):\n    """Sum.\n\n    Args:\n        a: first.\n        b, c: others.\n    """\n'
    assert messages(check, tmp_path, source) == ["f: no entry under Args for b, c"]


def test_a_continuation_line_is_no_entry(check, tmp_path):
    source = 'def f(a, b):\n    """Sum.\n\n    Args:\n        a: first, and\n            b: not an entry.\n    """\n'
    assert messages(check, tmp_path, source) == ["f: no entry under Args for b"]


def test_public_methods_and_init_are_checked(check, tmp_path):
    source = (
        'class C:\n    """Hold."""\n    def __init__(self, a): ...\n    def _private(self, x): ...\n'
        '    def run(self, b):\n        """Run."""\n'
    )
    assert messages(check, tmp_path, source) == [
        "C: no entry under Args for a",
        "C.run: no entry under Args for b",
    ]


def test_a_field_may_have_a_docstring_or_a_help(check, tmp_path):
    source = (
        '@dataclass\nclass C:\n    """Hold."""\n    a: int\n    """First."""\n'
        '    b: int = field(metadata={"help": "Second."})\n    c: int = 0\n'
    )
    assert messages(check, tmp_path, source) == ["C: no entry under Args for c"]


def test_an_override_needs_no_entries(check, tmp_path):
    source = (
        'class C(Other):\n    """Hold."""\n    def log(self, logs):\n        """Override ``Other.log``: add ours."""\n'
    )
    assert messages(check, tmp_path, source) == []


def test_an_export_is_found_through_reexports(check):
    (found,) = check.definitions(check.ROOT / "main_kernels" / "__init__.py", "info_nce")
    assert found[0].name == "contrastive.py"
