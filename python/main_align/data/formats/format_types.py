"""RecordFormat and its subclasses TwoFields, Conversation, Preference, Instances: the types of record formats.

record_formats.py lists the formats themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .messages import (
    InvalidRecord,
    Message,
    describe_type,
    is_conversation,
    is_null,
    looks_like_turns,
    messages_of,
    parse_literal,
    transcript_of,
)
from .record_view import RecordView

CONVERSATION_FIELDS = ("messages", "conversations")
PROMPT_FIELDS = ("prompt", "instruction", "question", "query", "input")
NO_INPUT = "<noinput>"  # an empty input in self-instruct


@dataclass(frozen=True)
class RecordFormat(ABC):
    """One record format.

    Args:
        used_by: data sets and tools that use the format, for help and documentation.
        example: a record in this format.
    """

    @abstractmethod
    def matches(self, view: RecordView, preference: str, nonempty: bool) -> bool:
        """Return True if the fields are present and not null, and with `nonempty` also not empty."""

    def matches_columns(self, view: RecordView) -> bool:
        """Return True if a table has the columns of this format."""
        return any(self.matches(view, preference, False) for preference in ("chosen", "rejected"))

    @abstractmethod
    def messages(self, view: RecordView, preference: str) -> list[Message]:
        """Return the whole conversation, which ends in the response. Raise InvalidRecord if there is none."""

    @abstractmethod
    def main_field(self, view: RecordView) -> str:
        """Return the field that a message about the record names."""

    def check_complete(self, view: RecordView) -> None:  # noqa: B027 (most formats have no such check)
        """Raise InvalidRecord if a record has this format except that a field is absent or null."""

    def ignored_parts(self, view: RecordView) -> list[str]:
        """Return names of the parts of a record in this format that are not read, for the report. Default: none."""
        return []

    @property
    @abstractmethod
    def description(self) -> str:
        """Return the field names, for help and documentation."""

    used_by: str = field(default="", kw_only=True)
    example: Mapping[str, Any] = field(default_factory=dict, kw_only=True)


def _is_present(value: Any, nonempty: bool) -> bool:
    return not is_null(value) and not (nonempty and value in ("", [], {}))


def side_messages(value: Any, name: str, role: str) -> list[Message]:
    """Return one side as messages: text is one turn of `role`; a list of turns or a transcript is parsed."""
    if isinstance(value, Mapping) and (inner := next((value[c] for c in CONVERSATION_FIELDS if c in value), None)):
        return messages_of(inner, name)
    has_texts = isinstance(value, list) and any(isinstance(item, str) for item in value)  # a list of answers
    if (isinstance(value, (list, Mapping)) and not has_texts) or looks_like_turns(value):
        return messages_of(value, name)
    if not isinstance(value, str):
        raise InvalidRecord("missing_field", f"the field {name!r} is {describe_type(value)}, not text")
    if role == "user" and (turns := transcript_of(value)):
        return turns
    return [Message(role, value)]


def append_texts(instruction: str, *extras: str) -> str:
    """Append texts to an instruction, each on a new line, and skip empty ones."""
    filled = [text for text in extras if text.strip() and text.strip().casefold() != NO_INPUT]
    return "\n".join([*([instruction] if instruction else []), *filled]) if filled else instruction


@dataclass(frozen=True)
class TwoFields(RecordFormat):
    """One field per side, with text or turns.

    Args:
        instruction: field of the instruction.
        responses: fields of the response, by priority.
        only_prompt: the instruction's field may also be an addition to another prompt (`input`), so the format matches
            only if the record has no other prompt field.
        by_path: the names are dotted paths given by the user.
    """

    instruction: str
    responses: tuple[str, ...]
    only_prompt: bool = False
    by_path: bool = False

    def _response(self, view: RecordView, nonempty: bool) -> str | None:
        return next((name for name in self.responses if _is_present(view.get(name), nonempty)), None)

    def matches(self, view: RecordView, preference: str, nonempty: bool) -> bool:
        if preference != "chosen" or not _is_present(view.get(self.instruction), nonempty):
            return False
        if self.only_prompt and any(view.name(name) for name in PROMPT_FIELDS if name != self.instruction):
            return False
        return self._response(view, nonempty) is not None

    def messages(self, view: RecordView, preference: str) -> list[Message]:
        get = view.at if self.by_path else view.get
        response = self.responses[0] if self.by_path else self._response(view, True) or self._response(view, False)
        assert response is not None
        view.use(self.instruction)
        view.use(response)
        prompt = side_messages(get(self.instruction), self.instruction, "user")
        return prompt + side_messages(get(response), response, "assistant")

    def main_field(self, view: RecordView) -> str:
        return self.instruction

    def check_complete(self, view: RecordView) -> None:
        if view.name(self.instruction) is None:
            return
        response = next((name for name in self.responses if view.name(name)), self.responses[0])
        for name in (self.instruction, response):
            if is_null(view.get(name)):
                problem = "is null" if view.name(name) else "is absent"
                raise InvalidRecord("missing_field", f"the field {name!r} {problem}")

    @property
    def description(self) -> str:
        return f"{self.instruction} with {', '.join(self.responses)}"


@dataclass(frozen=True)
class Conversation(RecordFormat):
    """One field with a list of turns that ends in user and assistant.

    Args:
        names: names of the field.
        check_value: the names also have other meanings, so the format matches only if the value is a conversation.
        allow_exchanges: such a value may be a list of objects with both sides.
    """

    names: tuple[str, ...]
    check_value: bool = False
    allow_exchanges: bool = True

    def _name(self, view: RecordView, nonempty: bool) -> str | None:
        for name in self.names:
            value = view.get(name)
            if _is_present(value, nonempty) and (not self.check_value or is_conversation(value, self.allow_exchanges)):
                return name
        return None

    def matches(self, view: RecordView, preference: str, nonempty: bool) -> bool:
        return preference == "chosen" and self._name(view, nonempty) is not None

    def matches_columns(self, view: RecordView) -> bool:
        return any(view.name(name) for name in self.names)

    def messages(self, view: RecordView, preference: str) -> list[Message]:
        name = self.main_field(view)
        view.use(name)
        return messages_of(view.get(name), name)

    def main_field(self, view: RecordView) -> str:
        return self._name(view, True) or self._name(view, False) or self.names[0]

    @property
    def description(self) -> str:
        *others, last = self.names
        return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True)
class Preference(RecordFormat):
    """Two responses to one prompt, one of them chosen by the option --preference.

    Args:
        chosen: field of the preferred response.
        rejected: field of the other response.
        prompts: fields of the prompt, by priority.
    """

    chosen: str
    rejected: str
    prompts: tuple[str, ...] = PROMPT_FIELDS

    def _prompt(self, view: RecordView) -> str | None:
        names = (*self.prompts, *CONVERSATION_FIELDS)
        return next((name for name in names if _is_present(view.get(name), True)), None)

    def matches(self, view: RecordView, preference: str, nonempty: bool) -> bool:
        return _is_present(view.get(getattr(self, preference)), nonempty) and view.name(self.rejected) is not None

    def messages(self, view: RecordView, preference: str) -> list[Message]:
        for name in (self.chosen, self.rejected):
            view.use(name)
        name, prompt = getattr(self, preference), self._prompt(view)
        value = view.get(name)
        transcript = transcript_of(value) if isinstance(value, str) else None
        answer = transcript or side_messages(value, name, "assistant")
        if answer and answer[0].role != "assistant":  # the response includes its prompt
            return answer
        if prompt is None:
            names = ", ".join(self.prompts)
            raise InvalidRecord("missing_field", f"no prompt accompanies {name!r}; expected one of {names}")
        view.use(prompt)
        return side_messages(view.get(prompt), prompt, "user") + answer

    def main_field(self, view: RecordView) -> str:
        return self.chosen

    @property
    def description(self) -> str:
        return f"{self.chosen} and {self.rejected}, with {', '.join(self.prompts)} or as whole conversations"


@dataclass(frozen=True)
class Instances(RecordFormat):
    """An instruction with a list of instances, the first of which is read.

    Args:
        instruction: field of the instruction.
        instances: field of the list; each instance has an `output` and may have an `input`.
    """

    instruction: str = "instruction"
    instances: str = "instances"

    def matches(self, view: RecordView, preference: str, nonempty: bool) -> bool:
        items = parse_literal(view.get(self.instances))
        if preference != "chosen" or not _is_present(view.get(self.instruction), nonempty):
            return False
        return isinstance(items, list) and bool(items) and isinstance(items[0], Mapping) and "output" in items[0]

    def matches_columns(self, view: RecordView) -> bool:
        return bool(view.name(self.instruction) and view.name(self.instances))

    def messages(self, view: RecordView, preference: str) -> list[Message]:
        for name in (self.instruction, self.instances):
            view.use(name)
        first = RecordView(parse_literal(view.get(self.instances))[0])
        instruction = view.text(self.instruction)
        extra = "" if is_null(first.get("input")) else first.text("input")
        return [Message("user", append_texts(instruction, extra)), Message("assistant", first.text("output"))]

    def main_field(self, view: RecordView) -> str:
        return self.instruction

    def ignored_parts(self, view: RecordView) -> list[str]:
        count = len(parse_literal(view.get(self.instances)))
        return [f"{view.name(self.instances)} after the first"] if count > 1 else []

    @property
    def description(self) -> str:
        return f"{self.instruction} with {self.instances}, a list of input and output (the first is read)"
