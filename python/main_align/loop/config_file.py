"""A LoopConfig from a YAML, JSON or TOML file, with settings given on top of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from .config import LoopConfig, check_names

ENDINGS = (".yaml", ".yml", ".json", ".toml")
EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")
NAMES = [item.name for item in fields(LoopConfig)]


def read_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None, assignments: Iterable[str] = ()
) -> LoopConfig:
    """The settings of a file, then `overrides`, then `assignments` ("rounds=3", "training.learning_rate=1e-4").

    Raises UserError naming the file, the key and the nearest known key.
    """
    where = "the settings" if path is None else str(path)
    values = {} if path is None else _read(Path(path))
    check_names(values, NAMES, where)
    values |= overrides or {}
    for text in assignments:
        _assign(values, text)
    for name in ("seeds", "output_dir"):
        if values.get(name) is None:
            raise UserError(f"{where}: {name} is missing; {_needed[name]}")
    return LoopConfig(**values)


_needed = {
    "seeds": "name the seed pairs in the file or with --seeds",
    "output_dir": "name the run's folder in the file or with --output",
}


def _read(path: Path) -> dict[str, Any]:
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path}: a config file ends in {', '.join(ENDINGS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    try:
        values = _parse(path.read_text(encoding="utf-8"), path.suffix.lower())
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not settings; write lines such as `rounds: 2`")
    return values


def _parse(text: str, ending: str) -> Any:
    """The file's value; ValueError, saying where, for one that is malformed."""
    if ending == ".json":
        return json.loads(text)
    if ending == ".toml":
        try:
            import tomllib
        except ModuleNotFoundError:
            raise UserError("a TOML config needs Python 3.11 or newer; write it as YAML") from None
        return tomllib.loads(text)
    return _yaml(text)


def _yaml(text: str) -> Any:
    import yaml

    try:
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _numbers(value: Any) -> Any:
    """YAML 1.1 takes 1e-4 for text; nobody else does."""
    if isinstance(value, dict):
        return {name: _numbers(each) for name, each in value.items()}
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _assign(values: dict[str, Any], text: str) -> None:
    name, equals, written = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write KEY=VALUE, for one --set training.learning_rate=1e-4")
    first, dot, rest = name.strip().partition(".")
    check_names({first: None}, NAMES, f"--set {text}")
    value = _yaml(written)
    if not dot:
        values[first] = value
    elif first == "training":
        values["training"] = {**(values.get("training") or {}), rest: value}
    else:
        raise UserError(f"--set {text}: only training has settings inside it")
