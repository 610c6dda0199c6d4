"""FieldHelp: a griffe extension that shows the help of dataclass fields on the API pages.

Settings of the trainers keep their text in ``field(metadata={"help": ...})``, where transformers' argument parser reads
it. This extension makes that text the docstring of the field.
"""

from __future__ import annotations

import ast
from typing import Any

import griffe


class FieldHelp(griffe.Extension):
    """Give each dataclass field without a docstring the ``help`` of its metadata."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Override ``griffe.Extension.on_attribute_instance``: set docstring and value from ``field(...)``."""
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Call):
            return
        words = {word.arg: word.value for word in node.value.keywords}
        metadata = words.get("metadata")
        if attr.docstring is not None or not isinstance(metadata, ast.Dict):
            return
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help" and isinstance(value, ast.Constant):
                attr.docstring = griffe.Docstring(str(value.value), lineno=node.lineno)
                attr.value = ast.unparse(words["default"]) if "default" in words else None
