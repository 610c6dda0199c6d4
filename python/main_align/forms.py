"""From one record (a dict of any of the usual shapes) to its Pair, or to why there is none.

Tried in this order: fields named by the user; prompt/completion; instruction(+input)/response or
output; messages or conversations. A shape counts where all its fields are there and not null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .records import Pair, Turn

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}

SHAPES = (
    ("prompt", "completion"),
    ("instruction", "response"),
    ("instruction", "output"),
)

CONVERSATIONS = ("messages", "conversations")


@dataclass(frozen=True, slots=True)
class Fields:
    """Field names given by the user; instruction and response are named together or not at all."""

    instruction: str | None = None
    response: str | None = None
    id: str | None = None


class _Unfit(Exception):
    """Why a record cannot be scored: args are the status and the reason, without the line."""


def pair_from_record(record: Mapping[str, Any], line: int, fields: Fields, *, unit: str = "line") -> Pair:
    """The Pair of one record. Never raises for bad data: the Pair's status and reason say it.

    `unit` is what `line` counts ("line" or "row"), for the reason.
    """
    row_id = str(line)
    try:
        row_id = _row_id(record, line, fields)
        instruction, response, context = _read_shape(record, fields)
        for name, text in (("instruction", instruction), ("response", response)):
            _check_encoding(name, text)
        for turn in context:
            _check_encoding(f"{turn.role} turn", turn.text)
    except _Unfit as unfit:
        status, reason = unfit.args
        return Pair(id=row_id, line=line, status=status, reason=f"{unit} {line}: {reason}")
    return Pair(row_id, line, instruction, response, context)


def _row_id(record: Mapping[str, Any], line: int, fields: Fields) -> str:
    name = fields.id or "id"
    value = record.get(name)
    if fields.id and value is None:
        raise _Unfit("missing_field", f"no field {name!r}, named by --id-field")
    if value is None or value == "":
        return str(line)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _Unfit("missing_field", f"the id is {_kind(value)}, not text or a whole number")
    _check_encoding("id", str(value))
    return str(value)


def _read_shape(record: Mapping[str, Any], fields: Fields) -> tuple[str, str, tuple[Turn, ...]]:
    if fields.instruction and fields.response:
        _require(record, fields.instruction, fields.response)
        return _two_sides(record, fields.instruction, fields.response)
    for names in SHAPES:
        if all(record.get(name) is not None for name in names):
            return _two_sides(record, *names)
    for name in CONVERSATIONS:
        if record.get(name) is not None:
            return _split_last_pair(_turns(record[name], name), name)
    for names in SHAPES:
        if names[0] in record:
            _require(record, *names)
    found = ", ".join(map(repr, record)) or "no fields"
    raise _Unfit(
        "missing_field",
        f"found {found}; name the two sides with --instruction-field and --response-field",
    )


def _require(record: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if record.get(name) is None:
            what = "is null" if name in record else "is absent"
            raise _Unfit("missing_field", f"the field {name!r} {what}")


def _two_sides(record: Mapping[str, Any], left: str, right: str) -> tuple[str, str, tuple[Turn, ...]]:
    context: tuple[Turn, ...] = ()
    if isinstance(record[left], list):
        turns = _turns(record[left], left)
        if not turns or turns[-1].role != "user":
            raise _Unfit("unsupported_turns", f"{left!r} does not end in a user turn")
        instruction, context = turns[-1].text, turns[:-1]
    else:
        instruction = _text(record, left)
        extra = _text(record, "input") if _is_alpaca(record, left) else ""
        if extra.strip():
            instruction = f"{instruction}\n{extra}" if instruction else extra
    if isinstance(record[right], list):
        turns = _turns(record[right], right)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise _Unfit("unsupported_turns", f"{right!r} is not exactly one assistant turn")
        return instruction, turns[0].text, context
    return instruction, _text(record, right), context


def _is_alpaca(record: Mapping[str, Any], left: str) -> bool:
    return left == "instruction" and record.get("input") is not None


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise _Unfit("missing_field", f"the field {name!r} is {_kind(value)}, not text")
    return value


def _turns(value: Any, name: str) -> tuple[Turn, ...]:
    if not isinstance(value, list):
        raise _Unfit("missing_field", f"the field {name!r} is {_kind(value)}, not a list of turns")
    turns = []
    for number, message in enumerate(value, 1):
        where = f"turn {number} of {name!r}"
        if not isinstance(message, Mapping):
            raise _Unfit("unsupported_turns", f"{where} is {_kind(message)}, not an object")
        role = message.get("role", message.get("from"))
        text = message.get("content", message.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            raise _Unfit("unsupported_turns", f"{where} has the role {role!r}; known: {_known()}")
        if not isinstance(text, str):
            raise _Unfit("unsupported_turns", f"the content of {where} is {_kind(text)}, not text")
        turns.append(Turn(ROLES[role], text))
    return tuple(turns)


def _split_last_pair(turns: tuple[Turn, ...], name: str) -> tuple[str, str, tuple[Turn, ...]]:
    roles = [turn.role for turn in turns[-2:]]
    if roles != ["user", "assistant"]:
        ending = " then ".join(roles) or "nothing"
        raise _Unfit("unsupported_turns", f"{name!r} ends in {ending}, not user then assistant")
    return turns[-2].text, turns[-1].text, turns[:-2]


def _known() -> str:
    return ", ".join(ROLES)


def _check_encoding(name: str, text: str) -> None:
    # Undecodable bytes and lone \ud800 escapes both end up as lone surrogates in a Python string.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _Unfit("bad_encoding", f"the {name} is not valid Unicode text") from None


def _kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "true/false", int: "a number", float: "a number"}
    kinds |= {str: "text", list: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), f"of type {type(value).__name__}")
