"""The kinds of forms in which data sets hold a pair; dialects.py lists the forms themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .turns import (
    Message,
    Unfit,
    is_conversation,
    is_null,
    kind,
    looks_like_turns,
    messages_of,
    parsed,
    transcript_of,
)
from .view import View

CONVERSATIONS = ("messages", "conversations")
LEFTS = ("prompt", "instruction", "question", "query", "input")
NO_INPUT = "<noinput>"  # self-instruct's way to leave an input empty


@dataclass(frozen=True)
class Dialect(ABC):
    """One form of a record. `form` and `seen_in` say for people what it is, `example` is a record of it."""

    @abstractmethod
    def fits(self, view: View, side: str, filled: bool) -> bool:
        """True where the fields are there and not null, with `filled` also not empty."""

    def has_fields(self, view: View) -> bool:
        """True where a table has the columns of this form."""
        return any(self.fits(view, side, False) for side in ("chosen", "rejected"))

    @abstractmethod
    def messages(self, view: View, side: str) -> list[Message]:
        """The whole conversation, the response last. Raises Unfit."""

    @abstractmethod
    def where(self, view: View) -> str:
        """The field to name in a reason."""

    def explain(self, view: View) -> None:  # noqa: B027 (most forms have nothing to explain)
        """Raise Unfit where a record is of this form but for a field that is absent or null."""

    @property
    @abstractmethod
    def form(self) -> str:
        """The fields, for people."""

    seen_in: str = field(default="", kw_only=True)
    example: Mapping[str, Any] = field(default_factory=dict, kw_only=True)


def _there(value: Any, filled: bool) -> bool:
    return not is_null(value) and not (filled and value in ("", [], {}))


def side_messages(value: Any, name: str, role: str) -> list[Message]:
    """One side as messages: a text is one turn of `role`, a list of turns or a transcript is what it says."""
    if isinstance(value, Mapping) and (inner := next((value[c] for c in CONVERSATIONS if c in value), None)):
        return messages_of(inner, name)
    texts = isinstance(value, list) and any(isinstance(item, str) for item in value)  # a list of answers is no side
    if (isinstance(value, (list, Mapping)) and not texts) or looks_like_turns(value):
        return messages_of(value, name)
    if not isinstance(value, str):
        raise Unfit("missing_field", f"the field {name!r} is {kind(value)}, not text")
    if role == "user" and (turns := transcript_of(value)):
        return turns
    return [Message(role, value)]


def joined(x: str, *extras: str) -> str:
    """An instruction with the texts that end it, each on a new line; empty ones are left out."""
    filled = [text for text in extras if text.strip() and text.strip().casefold() != NO_INPUT]
    return "\n".join([*([x] if x else []), *filled]) if filled else x


@dataclass(frozen=True)
class TwoFields(Dialect):
    """One field for each side, text or turns; of the responses the first that is there is read.

    `alone`: the left name is an addition to others (`input`), so it counts where the record has none of those;
    `exact`: the names are the user's.
    """

    left: str
    rights: tuple[str, ...]
    alone: bool = False
    exact: bool = False

    def _right(self, view: View, filled: bool) -> str | None:
        return next((name for name in self.rights if _there(view.get(name), filled)), None)

    def fits(self, view: View, side: str, filled: bool) -> bool:
        if side != "chosen" or not _there(view.get(self.left), filled):
            return False
        if self.alone and any(view.name(name) for name in LEFTS if name != self.left):
            return False
        return self._right(view, filled) is not None

    def messages(self, view: View, side: str) -> list[Message]:
        get = view.at if self.exact else view.get
        right = self.rights[0] if self.exact else self._right(view, True) or self._right(view, False)
        assert right is not None
        view.use(self.left)
        view.use(right)
        found = side_messages(get(self.left), self.left, "user")
        return found + side_messages(get(right), right, "assistant")

    def where(self, view: View) -> str:
        return self.left

    def explain(self, view: View) -> None:
        if view.name(self.left) is None:
            return
        right = next((name for name in self.rights if view.name(name)), self.rights[0])
        for name in (self.left, right):
            if is_null(view.get(name)):
                what = "is null" if view.name(name) else "is absent"
                raise Unfit("missing_field", f"the field {name!r} {what}")

    @property
    def form(self) -> str:
        return f"{self.left} with {', '.join(self.rights)}"


@dataclass(frozen=True)
class Conversation(Dialect):
    """One field with a list of turns that ends in user and assistant."""

    names: tuple[str, ...]
    sure: bool = True  # False: the names also mean other things, so the value must be a conversation
    exchanges: bool = True  # such a value may be a list of objects with both sides

    def _name(self, view: View, filled: bool) -> str | None:
        for name in self.names:
            value = view.get(name)
            if _there(value, filled) and (self.sure or is_conversation(value, self.exchanges)):
                return name
        return None

    def fits(self, view: View, side: str, filled: bool) -> bool:
        return side == "chosen" and self._name(view, filled) is not None

    def has_fields(self, view: View) -> bool:
        return any(view.name(name) for name in self.names)

    def messages(self, view: View, side: str) -> list[Message]:
        name = self.where(view)
        view.use(name)
        return messages_of(view.get(name), name)

    def where(self, view: View) -> str:
        return self._name(view, True) or self._name(view, False) or self.names[0]

    @property
    def form(self) -> str:
        return " or ".join(self.names)


@dataclass(frozen=True)
class Preference(Dialect):
    """Two responses to one prompt: the `chosen` one is read, or with --side rejected the other."""

    chosen: str
    rejected: str
    prompts: tuple[str, ...] = LEFTS

    def _prompt(self, view: View) -> str | None:
        names = (*self.prompts, *CONVERSATIONS)
        return next((name for name in names if _there(view.get(name), True)), None)

    def fits(self, view: View, side: str, filled: bool) -> bool:
        return _there(view.get(getattr(self, side)), filled) and view.name(self.rejected) is not None

    def messages(self, view: View, side: str) -> list[Message]:
        for name in (self.chosen, self.rejected):
            view.use(name)
        name, prompt = getattr(self, side), self._prompt(view)
        value = view.get(name)
        whole = transcript_of(value) if isinstance(value, str) else None
        answer = whole or side_messages(value, name, "assistant")
        if answer and answer[0].role != "assistant":  # it repeats its prompt
            return answer
        if prompt is None:
            raise Unfit("missing_field", f"no prompt stands beside {name!r}; known: {', '.join(self.prompts)}")
        view.use(prompt)
        return side_messages(view.get(prompt), prompt, "user") + answer

    def where(self, view: View) -> str:
        return self.chosen

    @property
    def form(self) -> str:
        return f"{self.chosen} and {self.rejected}, with {', '.join(self.prompts)} or as whole conversations"


@dataclass(frozen=True)
class Instances(Dialect):
    """An instruction with a list of instances, of which the first is read."""

    left: str = "instruction"
    name: str = "instances"

    def fits(self, view: View, side: str, filled: bool) -> bool:
        found = parsed(view.get(self.name))
        if side != "chosen" or not _there(view.get(self.left), filled) or not isinstance(found, list) or not found:
            return False
        return isinstance(found[0], Mapping) and "output" in found[0]

    def has_fields(self, view: View) -> bool:
        return bool(view.name(self.left) and view.name(self.name))

    def messages(self, view: View, side: str) -> list[Message]:
        for name in (self.left, self.name):
            view.use(name)
        inner = View(parsed(view.get(self.name))[0])
        x = view.text(self.left)
        extra = "" if is_null(inner.get("input")) else inner.text("input")
        return [Message("user", joined(x, extra)), Message("assistant", inner.text("output"))]

    def where(self, view: View) -> str:
        return self.left

    @property
    def form(self) -> str:
        return f"{self.left} with {self.name}, a list of input and output (the first is read)"
