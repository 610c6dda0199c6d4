"""check_types, check_values, check_counts, check_divisor: checks of arguments and settings, which raise UserError."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UserError, UserTypeError


def check_types(annotated: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise UserTypeError for the first value whose type is not that of the annotation of its name.

    Args:
        annotated: the function or the dataclass.
        values: arguments or fields by name, such as `locals()` in the first line of the function. Others are skipped.
    """
    for name, annotation in _annotations(annotated).items():
        if name in values and not _matches_type(values[name], annotation):
            expected, value = _describe_type(annotation), values[name]
            got = f"{value!r}" if isinstance(value, (str, int, float, type(None))) else type(value).__name__
            raise UserTypeError(f"{name} must be {expected}, got {got}")


@functools.cache
def _annotations(annotated: Callable[..., Any]) -> dict[str, Any]:
    return {name: kind for name, kind in get_type_hints(annotated).items() if name != "return"}


def check_values(settings: Any, minimum: Mapping[str, float]) -> None:
    """Raise UserError if a value of a dataclass has the wrong type, is below its minimum or is infinite.

    Args:
        settings: a dataclass of settings.
        minimum: least value by name. A setting that is None has its default.
    """
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    check_types(type(settings), values)
    for name, value in values.items():
        low = minimum.get(name)
        if low is not None and value is not None and not value >= low:
            raise UserError(f"{name} must be at least {low}, got {value}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} must be finite, got {value}")


def check_counts(**values: int | None) -> None:
    """Raise UserError for a number below 1. None stands for a default."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")


def check_divisor(**values: float) -> None:
    """Raise UserError for a number that cannot divide scores."""
    from main_kernels.checks import check_positive  # imports torch

    for name, value in values.items():
        try:
            check_positive(name, value)
        except ValueError as error:
            raise UserError(str(error)) from None


def _matches_type(value: Any, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, UnionType):
        return any(_matches_type(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin is list:
        return isinstance(value, list) and all(_matches_type(each, arguments[0]) for each in value)
    if origin is Sequence:
        return (
            not isinstance(value, str)
            and isinstance(value, Sequence)
            and all(_matches_type(each, arguments[0]) for each in value)
        )
    if origin is dict:
        return isinstance(value, dict)
    if annotation is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if issubclass(origin or annotation, Enum):
        return value in [*annotation, *(each.value for each in annotation)]
    return isinstance(value, origin or annotation)


def _describe_type(annotation: Any) -> str:
    """Return the plain-English name of a type for an error message."""
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    if annotation in plain:
        return plain[annotation]
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is list:
        return "a list of text"
    if get_origin(annotation) is dict:
        return "a table of settings"
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_describe_type(each) for each in get_args(annotation))
    if get_origin(annotation) is Sequence:
        return f"a sequence of {get_args(annotation)[0].__name__}"
    return f"of type {(get_origin(annotation) or annotation).__name__}"
