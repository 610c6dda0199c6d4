"""Tests of docs/generate.py: the committed pages are current."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from main_align.cli.app import app
from typer.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "docs" / "generate.py"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_generated_page_is_current(generate: ModuleType) -> None:
    assert [path.name for path in generate.outdated()] == [], "run python docs/generate.py"


def test_every_command_and_option_is_in_the_page(generate: ModuleType) -> None:
    page = generate.cli_page()
    for command in app.registered_commands:
        assert f"## main-align {command.name}" in page
    for option in ("--output", "--keep", "--set", "--trust-remote-code"):
        assert f"`{option}`" in page


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.name)
def test_every_argument_is_named_in_the_page_as_in_the_help(generate: ModuleType, command: Any) -> None:
    usage = next(line for line in generate.cli_page().splitlines() if line.startswith(f"main-align {command.name}"))
    names = [name for name in usage.split()[2:] if name != "[OPTIONS]"]
    assert "None" not in names
    shown = CliRunner().invoke(app, [command.name, "--help"], terminal_width=200).output
    assert all(name in shown for name in names)


def test_a_table_is_replaced_between_its_marks(generate: ModuleType) -> None:
    page = "a\n<!-- table: statuses -->\nold\n<!-- end -->\nb\n"
    new = generate.with_tables(page)
    assert "old" not in new
    assert "| `bad_json` | the row is not a JSON object |" in new
    assert new == generate.with_tables(new)
