"""refusal, unused_texts: columns that are not part of the pair; refused if dropping them changes what is learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...data.fields import Fields, Notes
from ...data.formats.conversion import pair_from_record

_COLUMNS = {
    "tools": "tools are not part of the prompt",
    "functions": "tools are not part of the prompt",
    "chat_template_kwargs": "one chat template serves all rows; set tokenizer.chat_template",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "only text is trained"),
}
# KTO's column, and that of examples/pairs.jsonl; false marks a mismatched response
QUALITY_FLAGS = ("label", "aligned")
_TURN_KEYS = ("tool_calls", "function_call", "reasoning_content", "thinking")
_TOOL_ROLES = ("tool", "function", "tool_call", "function_call", "tool_response", "observation", "ipython")


def refusal(record: Mapping[str, Any]) -> str:
    """Return the reason why a row cannot be trained; empty if it can."""
    for name, why in _COLUMNS.items():
        if _is_filled(record.get(name)):
            return f"its column {name!r} would be dropped: {why}"
    for name in QUALITY_FLAGS:
        if record.get(name) is False:
            return f"its column {name!r} is false, which marks a bad response: filter such rows out"
    if not isinstance(record.get("synthetic"), (bool, type(None))):
        return f"its column 'synthetic' must be true or false, got {record['synthetic']!r}"
    for name, turns in _conversations(record):
        for number, turn in enumerate(turns, 1):
            key = next((key for key in _TURN_KEYS if _is_filled(turn.get(key))), None)
            if key is not None:
                return f"{key!r} of turn {number} of {name!r} would be dropped: only the text of turns is trained"
            role = str(turn.get("role", turn.get("from"))).casefold()
            if role in _TOOL_ROLES:
                return f"turn {number} of {name!r} has the role {role!r}: tool calls are not part of the prompt"
        if turns[-1].get("weight") == 0:
            return f"the last turn of {name!r} has the weight 0: filter such rows out"
    return ""


def unused_texts(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns whose text is not part of the pair in some of the records."""
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
    """Tell whether a value holds more than nulls; Arrow gives every row the keys of all rows."""
    value = _parsed(value)
    if isinstance(value, Mapping):
        return any(map(_is_filled, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_is_filled, value))
    return value is not None and not (isinstance(value, str) and not value)


def _parsed(value: Any) -> Any:
    """Parse a list or object written as JSON, as columns whose type differs between rows often are."""
    if isinstance(value, str) and (value.lstrip()[:1] in ("[", "{") or value == "null"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
