"""Imports go down only: the floors of both packages, read from the source, imports for type checkers included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each folder, or group of single files, and the folders it may import. Nothing else is allowed.
MAIN_ALIGN = {
    "cli": {"ray", "reporting", "evaluation", "loop", "filtering", "training", "scoring", "models", "data", "ground"},
    "ray": {"scoring", "data", "ground"},
    "reporting": {"filtering", "scoring", "data", "ground"},
    "evaluation": {"loop", "scoring", "models", "data", "ground"},
    "integrations": {"training", "scoring", "models", "data", "ground"},
    "loop": {"filtering", "training", "scoring", "models", "data", "ground"},
    "filtering": {"scoring", "models", "data", "ground"},
    "training": {"models", "data", "ground"},
    "scoring": {"models", "data", "ground"},
    "models": {"data", "ground"},
    "data": {"ground"},
    "ground": set(),
}
MAIN_KERNELS = {
    "public": {"sweep", "backends", "ground"},
    "sweep": {"backends", "ground"},
    "backends": {"ground"},
    "ground": set(),
}
MAIN_KERNELS_GROUND = {"_version", "amp", "checks", "derivatives", "processor", "registration"}
PACKAGES = {
    "main_align": (ROOT / "python" / "main_align", MAIN_ALIGN),
    "main_kernels": (ROOT / "main_kernels", MAIN_KERNELS),
}


def floor(package: str, module: str) -> str:
    """Return the folder of a module, given its dotted name within the package."""
    root, allowed = PACKAGES[package]
    first = module.partition(".")[0]
    if first in allowed and (root / first).is_dir():
        return first
    if package == "main_kernels" and first not in MAIN_KERNELS_GROUND:
        return "public"
    return "ground"


def imported(file: Path, root: Path) -> Iterator[str]:
    """Yield the dotted names, within the package, of the modules that a file imports."""
    package = root.name
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parts = file.relative_to(root).parts[: -node.level] if node.level else ()
            module = ".".join([*parts, *([node.module] if node.module else [])])
            if not node.level:
                if module.partition(".")[0] != package:
                    continue
                module = module.removeprefix(package).lstrip(".")
            for alias in node.names:
                name = f"{module}.{alias.name}".lstrip(".")
                path = root.joinpath(*name.split("."))
                yield name if path.is_dir() or path.with_suffix(".py").is_file() else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{package}."):
                    yield alias.name.removeprefix(f"{package}.")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_imports_only_lower_folders(package):
    root, allowed = PACKAGES[package]
    wrong = []
    for file in sorted(root.rglob("*.py")):
        if file.parent == root and file.name in ("__init__.py", "__main__.py"):
            continue  # the package's own exports
        upper = floor(package, ".".join(file.relative_to(root).with_suffix("").parts))
        for module in imported(file, root):
            lower = floor(package, module)
            if module and lower != upper and lower not in allowed[upper]:
                wrong.append(f"{file.relative_to(root)} ({upper}) imports {module} ({lower})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_has_a_floor(package):
    root, allowed = PACKAGES[package]
    folders = {path.parent.name for path in root.glob("*/__init__.py")}
    assert folders == {name for name in allowed if (root / name).is_dir()}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_folders_import_each_other(package):
    _, allowed = PACKAGES[package]
    order = list(allowed)
    assert all(order.index(lower) > order.index(upper) for upper in order for lower in allowed[upper])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_subfolders_import_each_other(package):
    """Folders within one folder; its `__init__` re-exports, so it counts as none of them."""
    root, _ = PACKAGES[package]
    edges = set()
    for file in root.rglob("*.py"):
        for module in imported(file, root):
            path = root.joinpath(*module.split("."))
            lower = path if path.is_dir() else path.parent
            if (
                file.name != "__init__.py"
                and lower != file.parent
                and lower.parent == file.parent.parent != root.parent
            ):
                edges.add((file.parent.relative_to(root), lower.relative_to(root)))
    assert not [edge for edge in edges if edge[::-1] in edges]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other(package):
    """Neither directly nor through others. An `__init__` re-exports, so it is left out."""
    root, _ = PACKAGES[package]
    graph = {
        ".".join(file.relative_to(root).with_suffix("").parts): set(imported(file, root))
        for file in root.rglob("*.py")
        if file.name != "__init__.py"
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_main_kernels_does_not_import_main_align():
    for file in PACKAGES["main_kernels"][0].rglob("*.py"):
        assert "import main_align" not in file.read_text(encoding="utf-8"), file
        assert "from main_align" not in file.read_text(encoding="utf-8"), file
