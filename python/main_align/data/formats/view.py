"""A record seen through its field names: known ones in any spelling, the user's as dotted paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .turns import Unfit, is_null, kind, parsed, plain_name

TOOLS = ("tools", "functions")


class View:
    """A record whose fields are found by plain or dotted names, and which fields have been used."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self._names: dict[str, str] = {}
        for name in record:
            self._names.setdefault(plain_name(str(name)), name)
        self._used: set[str] = set()

    def name(self, name: str) -> str | None:
        """The field as the record spells it."""
        return name if name in self.record else self._names.get(plain_name(name))

    def get(self, name: str) -> Any:
        """The value of a known field, None where absent."""
        found = self.name(name)
        return None if found is None else self.record[found]

    def at(self, path: str) -> Any:
        """The value of a field that the user named: as it is spelt, else as a dotted path; None where absent."""
        value: Any = self.record
        for step in [path] if path in self.record else path.split("."):
            value = parsed(value)
            if isinstance(value, list) and step.lstrip("-").isdigit() and -len(value) <= int(step) < len(value):
                value = value[int(step)]
            elif isinstance(value, Mapping) and step in value:
                value = value[step]
            else:
                return None
        self.use(path)
        return value

    def has(self, path: str) -> bool:
        """True where the user's field is there, null or not."""
        return path in self.record or self.at(path) is not None

    def use(self, name: str) -> None:
        """Note that a field is part of what is scored."""
        self._used.add(self.name(name) or name.partition(".")[0])

    def is_used(self, name: str) -> bool:
        """True where `use` was told of the field."""
        return self.name(name) in self._used

    def unused_texts(self) -> list[str]:
        """Fields with text that nobody used; the id and pandas' nameless index are left out."""
        return [
            name
            for name, value in self.record.items()
            if isinstance(value, str)
            and value.strip()
            and name not in self._used
            and plain_name(str(name)) not in ("", "id")
        ]

    def left_over(self) -> list[str]:
        """Parts of the prompt other than text that are not read: tools, and instances after the first."""
        tools = [name for name in map(self.name, TOOLS) if name is not None and parsed(self.record[name])]
        instances = self.name("instances")
        found = parsed(self.record[instances]) if instances is not None else None
        return tools + ([f"{instances} after the first"] if isinstance(found, list) and len(found) > 1 else [])

    def text(self, name: str) -> str:
        """A known field's text. Raises Unfit where it is no text."""
        return self._text(name, self.get(name))

    def text_at(self, path: str) -> str:
        """As `text`, of a field that the user named; empty where absent."""
        value = self.at(path)
        return "" if is_null(value) else self._text(path, value)

    def _text(self, name: str, value: Any) -> str:
        self.use(name)
        if not isinstance(value, str):
            raise Unfit("missing_field", f"the field {name!r} is {kind(value)}, not text")
        return value
