"""Conversations in every common spelling as a list of Message, and the pair that such a list ends in."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..pairs import Turn

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"),
    "tool": ("tool", "function", "ipython", "observation", "tool_response", "function_response"),
    "call": ("function_call", "tool_call"),  # an assistant turn that is nothing but a call
}
ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
TEXT_KEYS = ("content", "value", "text", "message", "parts")
EXCHANGES = (("input", "output"), ("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("human", "bot"))
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
TRANSCRIPT = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")
JOINT = "\n\n"  # between system texts that become one system turn


class Unfit(Exception):
    """Why a record cannot be scored: args are the status and the reason, without the line."""


def plain_name(name: str) -> str:
    """A role or field name without case, spaces and underscores."""
    return re.sub(r"[\W_]+", "", name).casefold()


_ROLES = {plain_name(name): role for role, names in ROLES.items() for name in names}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn as found. `role` is system, user, assistant or tool; `call` marks an assistant's call of a tool."""

    role: str
    text: str
    call: bool = False


def is_null(value: Any) -> bool:
    """True for None and NaN, pandas' missing value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def kind(value: Any) -> str:
    """The kind of a value in words."""
    kinds = {bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if is_null(value) else (kinds | {bytes: "bytes"}).get(type(value), f"of type {type(value).__name__}")


def first_value(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first value that is not null: a parquet struct has every key of its column, most of them null."""
    return next((record[name] for name in names if not is_null(record.get(name))), None)


def parsed(value: Any) -> Any:
    """A list or object written as JSON or as Python source (pandas writes lists to .csv so); else the value itself."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def looks_like_turns(value: Any) -> bool:
    """True where a list, an object or its text is made of messages, so that it is no plain text of a side."""
    value = _as_list(parsed(value))
    return isinstance(value, list) and bool(value) and all(_has_role(message) for message in value)


def _has_role(message: Any) -> bool:
    return isinstance(message, Mapping) and not is_null(first_value(message, ROLE_KEYS))


def _as_list(value: Any) -> Any:
    """Messages as a list: `datasets` gives a sequence of structs as one struct of lists, others one bare message."""
    if isinstance(value, Mapping):
        if _has_role(value) and not isinstance(first_value(value, ROLE_KEYS), list):
            return [value]
        columns = {name: column for name, column in value.items() if isinstance(column, list)}
        if len({len(column) for column in columns.values()}) == 1 and len(columns) == len(value):
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return value


def messages_of(value: Any, name: str) -> list[Message]:
    """The messages of a field. Raises Unfit where it is no list of turns.

    Read: role/content, from/value and the like; objects with both sides; texts or [user, assistant] pairs in turn;
    all of these also as JSON text.
    """
    found = _as_list(parsed(value))
    if not isinstance(found, list):
        raise Unfit("missing_field", f"the field {name!r} is {kind(value)}, not a list of turns")
    messages: list[Message] = []
    for number, item in enumerate(found, 1):
        where = f"turn {number} of {name!r}"
        if isinstance(item, str) and all(isinstance(other, str) for other in found):
            messages.append(Message(("user", "assistant")[(number - 1) % 2], item))
        elif isinstance(item, Mapping):
            messages += _messages_of_object(item, where)
        else:
            raise Unfit("unsupported_turns", f"{where} is {kind(item)}, not an object")
    return messages


def is_conversation(value: Any, exchanges: bool) -> bool:
    """True for a list of messages or of texts in turn; with `exchanges` also of objects with both sides."""
    found = parsed(value)
    if not isinstance(found, list) or not found:
        return False
    texts = len(found) > 1 and all(isinstance(item, str) for item in found)
    if not (exchanges or texts or looks_like_turns(found)):
        return False
    try:
        return len(messages_of(found, "")) > 1
    except Unfit:
        return False


def exchanges_of(value: Any, name: str) -> list[Message]:
    """As messages_of, and lists of [user, assistant] pairs as well, as histories have them."""
    found = parsed(value)
    pairs = isinstance(found, list) and all(isinstance(item, (list, tuple)) and len(item) == 2 for item in found)
    return messages_of([text for item in found for text in item] if pairs else found, name)


def _messages_of_object(item: Mapping[str, Any], where: str) -> list[Message]:
    role = first_value(item, ROLE_KEYS)
    if role is None:
        sides = next((s for s in EXCHANGES if all(isinstance(item.get(name), str) for name in s)), None)
        if sides is not None:
            system = [Message("system", item["system"])] if isinstance(item.get("system"), str) else []
            return [*system, Message("user", item[sides[0]]), Message("assistant", item[sides[1]])]
    known = _ROLES.get(plain_name(role)) if isinstance(role, str) else None
    if known is None:
        raise Unfit("unsupported_turns", f"{where} has the role {role!r}; known: {', '.join(sum(ROLES.values(), ()))}")
    content = first_value(item, TEXT_KEYS)
    calls = _calls(item)
    if known == "call":
        return [Message("assistant", _as_text(content, where), call=True)]
    if known == "user" and _is_result(content):
        known = "tool"
    text = "" if content is None and calls else content_text(content, where)
    in_parts = isinstance(content, list) and any(_part_type(part) == "tool_use" for part in content)
    return [Message(known, "\n".join(filter(None, (text, *calls))), call=bool(calls) or in_parts)]


def _calls(item: Mapping[str, Any]) -> list[str]:
    """An assistant's calls of tools, each as one line of JSON."""
    calls = parsed(item.get("tool_calls")) or item.get("function_call") or []
    return [_call_text(call) for call in (calls if isinstance(calls, list) else [calls]) if isinstance(call, Mapping)]


def _call_text(call: Mapping[str, Any]) -> str:
    call = call.get("function") or call
    arguments = parsed(first_value(call, ("arguments", "input", "parameters")))
    return json.dumps({"name": call.get("name"), "arguments": arguments}, ensure_ascii=False, default=str)


def _as_text(value: Any, where: str) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return content_text(value, where)


def content_text(content: Any, where: str) -> str:
    """The text of a message's content: text, or a list of parts whose texts are joined. Raises Unfit for others."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping) and not is_null(first_value(content, TEXT_KEYS)):
        return content_text(first_value(content, TEXT_KEYS), where)
    if not isinstance(content, list) or not content:
        raise Unfit("unsupported_turns", f"the content of {where} is {kind(content)}, not text")
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
    found = f"a part of type {name!r}" if isinstance(part, Mapping) else kind(part)
    raise Unfit("unsupported_turns", f"the content of {where} is a list that holds {found}, not text alone")


def _is_result(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(_part_type(part) == "tool_result" for part in content)


def transcript_of(text: str) -> list[Message] | None:
    """The messages of a text written as `Human: ... Assistant: ...` paragraphs (hh-rlhf); None where it is not."""
    pieces = TRANSCRIPT.split(text)
    if pieces[0].strip() or pieces[1:2] != ["Human"] or "Assistant" not in pieces[1::2]:
        return None
    messages = [
        Message("user" if who == "Human" else "assistant", said.strip())
        for who, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    return messages if messages[-1].text else messages[:-1]  # a prompt ends in a bare "Assistant:"


def split_last_pair(messages: Sequence[Message], name: str) -> tuple[str, str, list[Message]]:
    """(x, y, the rest): the last user turn and the assistant turn that answers it.

    An exchange with a tool between the two is context. Raises Unfit where there is no such end.
    """
    rest = list(messages)
    last = rest.pop() if rest else None
    exchange: list[Message] = []
    while rest and (rest[-1].call or rest[-1].role == "tool"):
        exchange.insert(0, rest.pop())
    if last is None or last.role != "assistant" or not rest or rest[-1].role != "user":
        ending = " then ".join(message.role for message in messages[-2:]) or "nothing"
        raise Unfit("unsupported_turns", f"{name!r} ends in {ending}, not user then assistant")
    return rest[-1].text, last.text, rest[:-1] + exchange


def context_of(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """The turns before a pair: system texts at the beginning are one turn, a tool's results are user turns."""
    first = next((place for place, message in enumerate(messages) if message.role != "system"), len(messages))
    system = list(dict.fromkeys(message.text for message in messages[:first] if message.text.strip()))
    turns = [Turn("system", JOINT.join(system))] if system else []
    turns += [Turn("user" if m.role == "tool" else m.role, m.text) for m in messages[first:]]
    return tuple(turns)
