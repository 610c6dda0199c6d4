"""Check docstrings without importing anything; part of `make lint`.

    python tools/check_docstrings.py                    # the whole repository
    python tools/check_docstrings.py main_kernels/sweep # findings under one path

Three rules:

1. A docstring opens with a verb or a noun, never with one of ``FORBIDDEN_OPENINGS``.
2. Every parameter of a public function, class or method has an entry of its own under ``Args:``. A name is public if
   the ``__all__`` of a package lists it. A field of a dataclass or NamedTuple may instead have a docstring below it or
   a ``help`` in its metadata. Two kinds of methods need no entries: one without a docstring that overrides a method of
   a base class in this repository, and one whose docstring starts with ``Override``, for other libraries' classes.
3. A public docstring is Markdown, as the API pages show it: no reStructuredText tables and no ``::`` before code.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "main_kernels", ROOT / "python" / "main_align")
FOLDERS = (*PACKAGES, ROOT / "bench", ROOT / "examples", ROOT / "tools")
FORBIDDEN_OPENINGS = frozenset({"What", "How", "Which", "Whether", "Those", "That", "From"})
RESTRUCTURED = re.compile(r"^ *==+ +==+|::$", re.MULTILINE)
SECTION = re.compile(r"\s*(Args|Attributes):\s*$")
ENTRY = re.compile(r"\*{0,2}`*(\w+)`*( \([^)]*\))?:\s*\S")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def parse(file: Path) -> ast.Module:
    """Parse one file.

    Args:
        file: a Python file.

    Returns:
        Its syntax tree.
    """
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def openings(file: Path) -> Iterator[tuple[int, str]]:
    """Find docstrings that open with a forbidden word.

    Args:
        file: a Python file.

    Yields:
        Line number and message of each finding.
    """
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            words = re.findall(r"\w+", node.value.value[:40])
            if words and words[0] in FORBIDDEN_OPENINGS:
                yield node.lineno, f"docstring opens with {words[0]!r}: start with a verb or a noun"


def entries(docstring: str | None) -> set[str]:
    """List the names that have an entry under ``Args:`` or ``Attributes:``.

    Args:
        docstring: the cleaned docstring; None is an empty one.

    Returns:
        The names.
    """
    found: set[str] = set()
    outer = inner = -1  # indentation of the section's title and of its entries; -1: outside a section
    for line in (docstring or "").splitlines():
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if SECTION.match(line):
            outer, inner = indent, -1
        elif outer >= 0 and indent <= outer:
            outer = -1
        elif outer >= 0:
            inner = indent if inner < 0 else inner
            if indent == inner and (entry := ENTRY.match(line.lstrip())):
                found.add(entry[1])
    return found


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """List a function's parameters.

    Args:
        function: its definition.

    Returns:
        The names, without ``self``, ``cls`` and those that start with an underscore.
    """
    spec = function.args
    names = [arg.arg for arg in (*spec.posonlyargs, *spec.args, spec.vararg, *spec.kwonlyargs, spec.kwarg) if arg]
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def undocumented(file: Path, definition: Definition) -> Iterator[tuple[int, str]]:
    """Find the parameters of one public definition that have no entry.

    Args:
        file: the file that defines it.
        definition: a public function or class.

    Yields:
        Line number and message of each finding.
    """
    docstring = ast.get_docstring(definition)
    if _is_overload(definition):
        return
    if docstring is None:
        yield definition.lineno, f"{definition.name}: no docstring"
    elif RESTRUCTURED.search(docstring):
        yield definition.lineno, f"{definition.name}: table or code in reStructuredText, write Markdown"
    documented = entries(docstring)
    if not isinstance(definition, ast.ClassDef):
        wanted = parameters(definition)
        if (docstring or "").startswith("Override "):
            wanted = []
        yield from _missing(definition.lineno, definition.name, wanted, documented)
        return
    inherited = _inherited_methods(file, definition)
    for method in _methods(definition):
        if method.name == "__init__":
            documented |= entries(ast.get_docstring(method))
            yield from _missing(method.lineno, definition.name, parameters(method), documented)
        elif not method.name.startswith("_") and (ast.get_docstring(method) or method.name not in inherited):
            for line, message in undocumented(file, method):
                yield line, f"{definition.name}.{message}"
    if _is_record(definition):
        yield from _missing(definition.lineno, definition.name, list(_bare_fields(definition)), documented)


def _missing(line: int, name: str, wanted: list[str], documented: set[str]) -> Iterator[tuple[int, str]]:
    if missing := [each for each in wanted if each not in documented]:
        yield line, f"{name}: no entry under Args for {', '.join(missing)}"


def _methods(definition: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in definition.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def _inherited_methods(file: Path, definition: ast.ClassDef) -> set[str]:
    """List the methods of base classes that this repository defines."""
    names: set[str] = set()
    for base in definition.bases:
        for home, node in definitions(file, ast.unparse(base)):
            if isinstance(node, ast.ClassDef) and node is not definition:
                names |= {method.name for method in _methods(node)} | _inherited_methods(home, node)
    return names


def _is_overload(definition: Definition) -> bool:
    return any(ast.unparse(decorator).endswith("overload") for decorator in definition.decorator_list)


def _is_record(definition: ast.ClassDef) -> bool:
    marks = [ast.unparse(node) for node in (*definition.decorator_list, *definition.bases)]
    return any("dataclass" in mark or "NamedTuple" in mark for mark in marks)


def _bare_fields(definition: ast.ClassDef) -> Iterator[str]:
    """Yield the fields that have neither a docstring below them nor a ``help`` in their metadata."""
    followers = [*definition.body[1:], None]
    for node, follower in zip(definition.body, followers, strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            has_docstring = isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant)
            has_help = node.value is not None and "'help'" in ast.unparse(node.value)
            is_field = "ClassVar" not in ast.unparse(node.annotation) and not node.target.id.startswith("_")
            if is_field and not has_docstring and not has_help:
                yield node.target.id


def definitions(file: Path, name: str) -> Iterator[tuple[Path, Definition]]:
    """Find the definition of an exported name, through re-exports.

    Args:
        file: the module that exports the name.
        name: the name.

    Yields:
        The defining file and the definition; nothing for a constant.
    """
    for node in ast.walk(parse(file)):
        if isinstance(node, Definition) and node.name == name and node in parse(file).body:
            yield file, node
        if isinstance(node, ast.ImportFrom) and node.level and any((a.asname or a.name) == name for a in node.names):
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split(".")).resolve()
            module = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            if module.is_file() and module != file:
                original = next(a.name for a in node.names if (a.asname or a.name) == name)
                yield from definitions(module, original)


def exports(file: Path) -> list[str]:
    """List a module's ``__all__``.

    Args:
        file: the module.

    Returns:
        The names; none without ``__all__``.
    """
    for node in parse(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def findings() -> Iterator[tuple[Path, int, str]]:
    """Check the whole repository.

    Yields:
        File, line number and message of each finding.
    """
    for folder in FOLDERS:
        for file in sorted(folder.rglob("*.py")):
            yield from ((file, line, message) for line, message in openings(file))
    public = {
        (file, node.lineno): node
        for package in PACKAGES
        for init in sorted(package.rglob("__init__.py"))
        for name in exports(init)
        for file, node in definitions(init, name)
    }
    for (file, _), node in sorted(public.items(), key=lambda item: item[0]):
        yield from ((file, line, message) for line, message in undocumented(file, node))


def main() -> None:
    """Print the findings under the paths of the command line and exit with 1 if there are any."""
    paths = [Path(path).resolve() for path in sys.argv[1:]] or [ROOT]
    found = [item for item in findings() if any(item[0].is_relative_to(path) for path in paths)]
    for file, line, message in found:
        print(f"{file.relative_to(ROOT)}:{line}: {message}")
    if found:
        raise SystemExit(f"{len(found)} findings")


if __name__ == "__main__":
    main()
