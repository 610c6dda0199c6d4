"""The public names: importable from main_align itself, on first use only, and there for type checkers too."""

from __future__ import annotations

import ast
from pathlib import Path

import main_align
import pytest


def test_what_type_checkers_see_is_what_is_imported_on_first_use():
    tree = ast.parse(Path(main_align.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == main_align._HOMES
    assert sorted(main_align.__all__) == sorted(typed)


def test_every_name_of_the_training_package_is_one_of_main_aligns():
    pytest.importorskip("trl")
    from main_align import training

    for name in training.__all__:
        assert getattr(main_align, name) is getattr(training, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'MutualAlignmentTrainr'"):
        main_align.MutualAlignmentTrainr  # noqa: B018
