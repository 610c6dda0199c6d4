"""read_config: a LoopConfig from a YAML, JSON or TOML file, with overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from .config import LoopConfig, check_names

SUFFIXES = (".yaml", ".yml", ".json", ".toml")
EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")
SETTINGS = [item.name for item in fields(LoopConfig)]
REQUIRED = {
    "seed_pairs": "name the seed pairs in the file or with --seed-pairs",
    "output_dir": "name the output folder in the file or with --output",
}


def read_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None, assignments: Iterable[str] = ()
) -> LoopConfig:
    """Read the settings of a run.

    Args:
        path: settings file (.yaml, .yml, .json or .toml). Default: no file.
        overrides: settings by name; they override the file.
        assignments: "rounds=3" or "training.learning_rate=1e-4", with the value in YAML; they override both.

    Returns:
        The checked settings.

    Raises:
        UserError: the file cannot be read, a setting is unknown (the message suggests the closest one), missing,
            of the wrong type or out of range.
    """
    source = "the settings" if path is None else str(path)
    values = {} if path is None else _read(Path(path))
    check_names(values, SETTINGS, source)
    values |= overrides or {}
    for assignment in assignments:
        _assign(values, assignment)
    for name, remedy in REQUIRED.items():
        if values.get(name) is None:
            raise UserError(f"{source}: {name} is missing; {remedy}")
    return LoopConfig(**values)


def _read(path: Path) -> dict[str, Any]:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: the name of a config file ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    try:
        values = _parse(path.read_text(encoding="utf-8"), path.suffix.lower())
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} contains a {type(values).__name__}, not settings; write lines such as `rounds: 2`")
    return values


def _parse(text: str, suffix: str) -> Any:
    """Return the file's value. Raises ValueError with the position of a syntax error."""
    if suffix == ".json":
        return json.loads(text)
    if suffix == ".toml":
        try:
            import tomllib
        except ModuleNotFoundError:
            raise UserError("a TOML config needs Python 3.11 or newer; write it as YAML") from None
        return tomllib.loads(text)
    return _parse_yaml(text)


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        return _convert_exponents(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _convert_exponents(value: Any) -> Any:
    """Convert text such as 1e-4 to a number; YAML 1.1 requires 1.0e-4."""
    if isinstance(value, dict):
        return {name: _convert_exponents(each) for name, each in value.items()}
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _assign(values: dict[str, Any], assignment: str) -> None:
    name, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"--set {assignment}: write KEY=VALUE, such as --set training.learning_rate=1e-4")
    setting, dot, inner = name.strip().partition(".")
    check_names({setting: None}, SETTINGS, f"--set {assignment}")
    try:
        value = _parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {assignment}: the value is not YAML: {error}") from None
    if not dot:
        values[setting] = value
    elif setting == "training":
        values["training"] = {**(values.get("training") or {}), inner: value}
    else:
        raise UserError(f"--set {assignment}: only training has inner settings")
