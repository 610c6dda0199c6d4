"""Message, messages_of, as_turns, split_last_pair: conversations in any common layout as a list of messages."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..pairs import Turn

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"),
    "tool": ("tool", "function", "ipython", "observation", "tool_response", "function_response"),
    "call": ("function_call", "tool_call"),  # an assistant turn that consists of a tool call
}
ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
TEXT_KEYS = ("content", "value", "text", "message", "parts")
CALL_KEYS = ("tool_calls", "function_call")
REASONING_KEYS = ("reasoning_content", "thinking")  # of a turn, which are not part of its text
EXCHANGES = (("input", "output"), ("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("human", "bot"))
TOOL_PARTS = ("tool_use", "tool_result")
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
TRANSCRIPT = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")
SYSTEM_SEPARATOR = "\n\n"  # between system texts that are merged into one turn


class InvalidRecord(Exception):
    """A record that cannot be scored. The args are its status and the reason, without the line."""


@lru_cache(maxsize=4096)  # the same few names in every row
def normalized(name: str) -> str:
    """Return a role or field name in lower case, without spaces and underscores."""
    return re.sub(r"[\W_]+", "", name).casefold()


_ROLES = {normalized(name): role for role, names in ROLES.items() for name in names}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn as stored: `role` is system, user, assistant or tool; `is_tool_call` marks a call by the assistant."""

    role: str
    text: str
    is_tool_call: bool = False


def is_null(value: Any) -> bool:
    """Return True for None and for NaN, the missing value of pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def describe_type(value: Any) -> str:
    """Return the type of a value in words, for messages."""
    names = {bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if is_null(value) else (names | {bytes: "bytes"}).get(type(value), f"of type {type(value).__name__}")


def first_value(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the first value that is not null. A parquet struct has every key of its column, most of them null."""
    return next((record[name] for name in names if not is_null(record.get(name))), None)


def parse_literal(value: Any) -> Any:
    """Parse a list or object stored as JSON text, or as Python source (pandas in .csv). Return other values as is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def is_filled(value: Any) -> bool:
    """Return True if a value holds more than nulls; Arrow gives every row the keys of all rows."""
    value = parse_literal(value)
    if isinstance(value, Mapping):
        return any(map(is_filled, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(is_filled, value))
    return value is not None and not (isinstance(value, str) and value in ("", "null"))


def looks_like_turns(value: Any) -> bool:
    """Return True for a list of messages, one message, or their JSON text, and False for plain text."""
    value = as_turns(value)
    return isinstance(value, list) and bool(value) and all(_has_role(message) for message in value)


def _has_role(message: Any) -> bool:
    return isinstance(message, Mapping) and not is_null(first_value(message, ROLE_KEYS))


def role_of(turn: Mapping[str, Any]) -> str | None:
    """Return the role of a turn as ROLES names it, or None if it has none or another one."""
    role = first_value(turn, ROLE_KEYS)
    return _ROLES.get(normalized(role)) if isinstance(role, str) else None


def tool_part_of(turn: Mapping[str, Any]) -> str:
    """Return the type of the first part of a turn's content that is a tool call or a result; empty if there is none."""
    content = first_value(turn, TEXT_KEYS)
    types = map(_part_type, content) if isinstance(content, list) else ()
    return next((name for name in types if name in TOOL_PARTS), "")


def as_turns(value: Any) -> Any:
    """Return messages as a list: from JSON text, one bare message, or a struct of lists, as `datasets` returns them."""
    value = parse_literal(value)
    if isinstance(value, Mapping):
        if _has_role(value) and not isinstance(first_value(value, ROLE_KEYS), list):
            return [value]
        columns = {name: column for name, column in value.items() if isinstance(column, list)}
        if len({len(column) for column in columns.values()}) == 1 and len(columns) == len(value):
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return value


def messages_of(value: Any, name: str) -> list[Message]:
    """Return the messages of a field.

    Items may be objects with a role and a content under any common name, objects with both sides, or texts that
    alternate between user and assistant. The whole list may be JSON text.

    Raises:
        InvalidRecord: the field is not a list of turns.
    """
    items = as_turns(value)
    if not isinstance(items, list):
        raise InvalidRecord("missing_field", f"the field {name!r} is {describe_type(value)}, not a list of turns")
    are_texts = all(isinstance(item, str) for item in items)
    filled = [text for text in items if text.strip()] if are_texts else []
    if filled and all(map(looks_like_turns, filled)):
        raise InvalidRecord("unsupported_turns", f"{name!r} is a list of conversations as JSON text; give one per row")
    messages: list[Message] = []
    for number, item in enumerate(items, 1):
        where = f"turn {number} of {name!r}"
        if are_texts:
            messages.append(Message(("user", "assistant")[(number - 1) % 2], item))
        elif isinstance(item, Mapping):
            messages += _messages_of_object(item, where)
        else:
            raise InvalidRecord("unsupported_turns", f"{where} is {describe_type(item)}, not an object")
    return messages


def is_conversation(value: Any, allow_exchanges: bool) -> bool:
    """Return True for a list of messages or of alternating texts, and if allowed for objects with both sides."""
    items = parse_literal(value)
    if not isinstance(items, list) or not items:
        return False
    texts = len(items) > 1 and all(isinstance(item, str) for item in items)
    if not (allow_exchanges or texts or looks_like_turns(items)):
        return False
    try:
        return len(messages_of(items, "")) > 1
    except InvalidRecord:
        return False


def exchanges_of(value: Any, name: str) -> list[Message]:
    """Return the messages of a history: like messages_of, but [user, assistant] pairs are also allowed."""
    items = parse_literal(value)
    pairs = isinstance(items, list) and all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items)
    return messages_of([text for item in items for text in item] if pairs else items, name)


def _messages_of_object(item: Mapping[str, Any], where: str) -> list[Message]:
    role = first_value(item, ROLE_KEYS)
    if role is None:
        sides = next((s for s in EXCHANGES if all(isinstance(item.get(name), str) for name in s)), None)
        if sides is not None:
            system = [Message("system", item["system"])] if isinstance(item.get("system"), str) else []
            return [*system, Message("user", item[sides[0]]), Message("assistant", item[sides[1]])]
    known = role_of(item)
    if known is None:
        raise InvalidRecord(
            "unsupported_turns", f"{where} has the role {role!r}; known: {', '.join(sum(ROLES.values(), ()))}"
        )
    content = first_value(item, TEXT_KEYS)
    calls = _calls(item)
    if known == "call":
        return [Message("assistant", _as_text(content, where), is_tool_call=True)]
    if known == "user" and _is_result(content):
        known = "tool"
    text = "" if content is None and calls else content_text(content, where)
    in_parts = isinstance(content, list) and any(_part_type(part) == "tool_use" for part in content)
    return [Message(known, "\n".join(filter(None, (text, *calls))), is_tool_call=bool(calls) or in_parts)]


def _calls(item: Mapping[str, Any]) -> list[str]:
    """Return the tool calls of an assistant turn, each as one line of JSON."""
    tool_calls, function_call = map(item.get, CALL_KEYS)
    calls = parse_literal(tool_calls) or function_call or []
    return [_call_text(call) for call in (calls if isinstance(calls, list) else [calls]) if isinstance(call, Mapping)]


def _call_text(call: Mapping[str, Any]) -> str:
    call = call.get("function") or call
    arguments = parse_literal(first_value(call, ("arguments", "input", "parameters")))
    return json.dumps({"name": call.get("name"), "arguments": arguments}, ensure_ascii=False, default=str)


def _as_text(value: Any, where: str) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return content_text(value, where)


def content_text(content: Any, where: str) -> str:
    """Return the text of a message's content, which is text or a list of text parts. Raise InvalidRecord otherwise."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping) and not is_null(first_value(content, TEXT_KEYS)):
        return content_text(first_value(content, TEXT_KEYS), where)
    if not isinstance(content, list) or not content:
        raise InvalidRecord("unsupported_turns", f"the content of {where} is {describe_type(content)}, not text")
    return "".join(_part_text(part, where) for part in content)


def _part_type(part: Any) -> str:
    return str(part.get("type") or "text") if isinstance(part, Mapping) else "text"


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    name = _part_type(part)
    if isinstance(part, Mapping):
        if name == "tool_use":
            return _call_text(part)
        if name == "tool_result":
            return content_text(part.get("content"), where)
        text = first_value(part, ("text", "refusal"))
        if name in TEXT_PARTS and isinstance(text, str):
            return text
    item = f"a part of type {name!r}" if isinstance(part, Mapping) else describe_type(part)
    raise InvalidRecord("unsupported_turns", f"the content of {where} is a list with {item}, not text alone")


def _is_result(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(_part_type(part) == "tool_result" for part in content)


def transcript_of(text: str) -> list[Message] | None:
    """Return the messages of `Human: ... Assistant: ...` paragraphs, as in hh-rlhf. None for any other text."""
    pieces = TRANSCRIPT.split(text)
    if pieces[0].strip() or pieces[1:2] != ["Human"] or "Assistant" not in pieces[1::2]:
        return None
    messages = [
        Message("user" if speaker == "Human" else "assistant", text.strip())
        for speaker, text in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    return messages if messages[-1].text else messages[:-1]  # a prompt ends in a bare "Assistant:"


def split_last_pair(messages: Sequence[Message], name: str) -> tuple[str, str, list[Message]]:
    """Split off the last user turn and the assistant turn that answers it.

    Args:
        messages: the conversation.
        name: its field, for messages.

    Returns:
        The instruction, the response, and the remaining messages. Tool calls between the two turns and their
        results are among the remaining messages.

    Raises:
        InvalidRecord: the conversation does not end in a user turn and an assistant turn.
    """
    rest = list(messages)
    last = rest.pop() if rest else None
    exchange: list[Message] = []
    while rest and (rest[-1].is_tool_call or rest[-1].role == "tool"):
        exchange.insert(0, rest.pop())
    if last is None or last.role != "assistant" or not rest or rest[-1].role != "user":
        ending = " then ".join(message.role for message in messages[-2:]) or "nothing"
        raise InvalidRecord("unsupported_turns", f"{name!r} ends in {ending}, not user then assistant")
    return rest[-1].text, last.text, rest[:-1] + exchange


def context_of(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """Return the turns before a pair. Leading system texts are merged into one turn; tool results are user turns."""
    first = next((place for place, message in enumerate(messages) if message.role != "system"), len(messages))
    system = list(dict.fromkeys(message.text for message in messages[:first] if message.text.strip()))
    turns = [Turn("system", SYSTEM_SEPARATOR.join(system))] if system else []
    turns += [Turn("user" if m.role == "tool" else m.role, m.text) for m in messages[first:]]
    return tuple(turns)
