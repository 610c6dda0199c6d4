"""What a row says beside its pair: refused where dropping it would change what is learned, else reported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...data.fields import Fields, Notes
from ...data.formats.conversion import pair_from_record

_COLUMNS = {
    "tools": "tools are not laid out",
    "functions": "tools are not laid out",
    "chat_template_kwargs": "the chat template is read once for all rows; set tokenizer.chat_template",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "only text is trained on"),
}
_FLAGS = ("label", "aligned")  # KTO's, and that of examples/pairs.jsonl: false marks a response that does not belong
_TURN_KEYS = ("tool_calls", "function_call", "reasoning_content", "thinking")
_TOOL_ROLES = ("tool", "function", "tool_call", "function_call", "tool_response", "observation", "ipython")


def refusal(record: Mapping[str, Any]) -> str:
    """Why a row cannot be trained on as it is; empty where it can."""
    for name, why in _COLUMNS.items():
        if _is_filled(record.get(name)):
            return f"its column {name!r} would be dropped: {why}"
    for name in _FLAGS:
        if record.get(name) is False:
            return f"its column {name!r} is false, so its response is no good one: filter such rows out"
    if not isinstance(record.get("synthetic"), (bool, type(None))):
        return f"its column 'synthetic' must be true or false, got {record['synthetic']!r}"
    for name, turns in _conversations(record):
        for number, turn in enumerate(turns, 1):
            key = next((key for key in _TURN_KEYS if _is_filled(turn.get(key))), None)
            if key is not None:
                return f"{key!r} of turn {number} of {name!r} would be dropped: only the text of turns is laid out"
            role = str(turn.get("role", turn.get("from"))).casefold()
            if role in _TOOL_ROLES:
                return f"turn {number} of {name!r} has the role {role!r}: exchanges with tools are not laid out"
        if turns[-1].get("weight") == 0:
            return f"the last turn of {name!r} has the weight 0: filter such rows out"
    return ""


def unused_texts(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns whose text is no part of the pair in some of the records."""
    notes = Notes()
    for number, record in enumerate(records):
        pair_from_record(record, number, Fields(), unit="row", notes=notes)
    return list(notes.unused)


def _conversations(record: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for name, value in record.items():
        turns = _parsed(value) if name in ("messages", "conversations") else value
        if isinstance(turns, list) and turns and all(isinstance(turn, Mapping) for turn in turns):
            yield name, turns


def _is_filled(value: Any) -> bool:
    """False for null and for what holds nothing else: Arrow gives every row the keys that one of them has."""
    value = _parsed(value)
    if isinstance(value, Mapping):
        return any(map(_is_filled, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_is_filled, value))
    return value is not None and not (isinstance(value, str) and not value)


def _parsed(value: Any) -> Any:
    """A list or object that is written as JSON, as columns that differ from row to row often are."""
    if isinstance(value, str) and (value.lstrip()[:1] in ("[", "{") or value == "null"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
