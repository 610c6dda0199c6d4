"""The public names of main_align: imported on first use, and visible to type checkers."""

from __future__ import annotations

import ast
from pathlib import Path

import main_align
import pytest


def test_type_checkers_see_the_names_that_are_imported_on_first_use():
    tree = ast.parse(Path(main_align.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert typed == main_align._MODULES
    assert sorted(main_align.__all__) == sorted(typed)


def test_main_align_exports_every_name_of_the_training_package():
    pytest.importorskip("trl")
    from main_align import training

    for name in training.__all__:
        assert getattr(main_align, name) is getattr(training, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'MutualAlignmentTrainr'"):
        main_align.MutualAlignmentTrainr  # noqa: B018
