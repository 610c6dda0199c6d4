"""RecordView: a record whose fields are looked up by name in any spelling, or by dotted path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .messages import (
    REASONING_KEYS,
    ROLE_KEYS,
    InvalidRecord,
    describe_type,
    first_value,
    is_filled,
    is_null,
    normalized,
    parse_literal,
)

TOOL_FIELDS = ("tools", "functions")
MEDIA_FIELDS = ("image", "images", "video", "videos", "audio", "audios")


class RecordView:
    """Look up fields of a record and track which of them have been used."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self._spelling: dict[str, str] = {}
        for name in record:
            self._spelling.setdefault(normalized(str(name)), name)
        self._used: set[str] = set()

    def name(self, name: str) -> str | None:
        """Return the field's name as the record spells it, or None if it is absent."""
        return name if name in self.record else self._spelling.get(normalized(name))

    def get(self, name: str) -> Any:
        """Return the value of a known field, or None if it is absent."""
        spelled = self.name(name)
        return None if spelled is None else self.record[spelled]

    def at(self, path: str) -> Any:
        """Return the value of a field named by the user: its exact name, or a dotted path. None if it is absent."""
        value: Any = self.record
        for step in [path] if path in self.record else path.split("."):
            value = parse_literal(value)
            if isinstance(value, list) and step.lstrip("-").isdigit() and -len(value) <= int(step) < len(value):
                value = value[int(step)]
            elif isinstance(value, Mapping) and step in value:
                value = value[step]
            else:
                return None
        self.use(path)
        return value

    def has(self, path: str) -> bool:
        """Return True if a field named by the user is present, even if it is null."""
        return path in self.record or self.at(path) is not None

    def use(self, name: str) -> None:
        """Mark a field as part of the pair."""
        self._used.add(self.name(name) or name.partition(".")[0])

    def is_used(self, name: str) -> bool:
        """Return True if the field is part of the pair."""
        return self.name(name) in self._used

    def unused_texts(self) -> list[str]:
        """Return the text fields that are not used, except the id and the unnamed index column of pandas."""
        return [
            name
            for name, value in self.record.items()
            if isinstance(value, str)
            and value.strip()
            and name not in self._used
            and normalized(str(name)) not in ("", "id")
        ]

    def unread_parts(self) -> list[str]:
        """Return what is not text of a turn: definitions of tools, images and the like, and the reasoning of turns."""
        fields = map(self.name, (*TOOL_FIELDS, *MEDIA_FIELDS))
        named = [name for name in fields if name is not None and is_filled(self.record[name])]
        return [*named, *(place for name, value in self.record.items() for place in _reasoning(value, name))]

    def text(self, name: str) -> str:
        """Return the text of a known field. Raise InvalidRecord if it is not text."""
        return self._text(name, self.get(name))

    def text_at(self, path: str) -> str:
        """Return the text of a field named by the user, "" if it is absent. Raise InvalidRecord if it is not text."""
        value = self.at(path)
        return "" if is_null(value) else self._text(path, value)

    def _text(self, name: str, value: Any) -> str:
        self.use(name)
        if not isinstance(value, str):
            raise InvalidRecord("missing_field", f"the field {name!r} is {describe_type(value)}, not text")
        return value


def _reasoning(value: Any, name: str) -> Iterator[str]:
    """Yield the places where turns of a conversation hold their reasoning, in a list, its JSON text or an object."""
    if isinstance(value, str) and not any(key in value for key in REASONING_KEYS):
        return  # most texts, which need not be parsed
    value = parse_literal(value)
    if isinstance(value, Mapping) and first_value(value, ROLE_KEYS) is None:
        for key, inner in value.items():
            yield from _reasoning(inner, f"{name}.{key}")
        return
    turns = value if isinstance(value, list) else [value]  # a turn, or the columns of all turns
    turns = [turn for turn in turns if isinstance(turn, Mapping)]
    yield from (f"{key} of {name}" for key in REASONING_KEYS if any(is_filled(turn.get(key)) for turn in turns))
