"""From one record (a dict of any of the usual forms) to its Pair, or to why there is none.

Forms are the Dialects of dialects.py, tried in their order. What else belongs to the prompt joins it: `input` and
`context` end the instruction, a system field and a history stand before the pair.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..pairs import Pair, Turn
from .dialect import Conversation, Dialect, TwoFields, joined
from .dialects import DIALECTS
from .turns import Message, Unfit, content_text, context_of, exchanges_of, is_null, parsed, split_last_pair
from .view import View

INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction")
HISTORIES = ("history", "chat_history")
SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Fields:
    """Field names given by the user, dotted where nested (`data.question`).

    Args:
        instruction: of the instruction; named together with `response` or not at all.
        response: of the response.
        id: of the row's label. Default: `id`.
        input: of a text that ends the instruction, in place of the known ones (`INPUTS`).
        system: of the system prompt, in place of the known ones (`SYSTEMS`).
        side: `chosen` or `rejected`, the response of a preference pair that is read.
    """

    instruction: str | None = None
    response: str | None = None
    id: str | None = None
    input: str | None = None
    system: str | None = None
    side: str = "chosen"


@dataclass
class Notes:
    """What the reading of rows noticed. `unused`: rows in which a text field was no part of what is scored, by field;
    `repeats`: rows whose own id an earlier row has, ids kept as 16-byte digests in `seen`."""

    unused: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    seen: set[bytes] = field(default_factory=set)

    def sentence(self) -> str:
        """One sentence on the unused text fields, empty where there are none."""
        if not self.unused:
            return ""
        names = ", ".join(map(repr, self.unused))
        return (
            f"text fields that are not scored: {names}. If one belongs to the prompt, name it with "
            "--input-field or --system-field."
        )


def pair_from_record(
    record: Mapping[str, Any], line: int, fields: Fields, *, unit: str = "line", notes: Notes | None = None
) -> Pair:
    """The Pair of one record. Never raises for bad data: the Pair's status and reason say it.

    `unit` is what `line` counts ("line" or "row"), for the reason; `notes` learns of text fields that are not used.
    """
    view = View(record)
    try:
        view, dialect = _resolve(view, fields)
        instruction, response, context = _read(view, dialect, fields)
        for name, text in (("instruction", instruction), ("response", response)):
            _check_encoding(name, text)
        for turn in context:
            _check_encoding(f"{turn.role} turn", turn.text)
    except Unfit as unfit:
        status, reason = unfit.args
        sides: dict[str, Any] = {"status": status, "reason": f"{unit} {line}: {reason}"}
    else:
        sides = {"instruction": instruction, "response": response, "context": context}
        if notes is not None:
            texts = (instruction, response, *(turn.text for turn in context))
            unused = (name for name in view.unused_texts() if not any(view.record[name] in text for text in texts))
            notes.unused.update(dict.fromkeys([*unused, *view.left_over()], 1))
    own_id = _label(view, fields)
    return Pair(str(line) if own_id is None else own_id, line, unit=unit, own_id=own_id is not None, **sides)


def can_hold_pairs(names: Sequence[str]) -> bool:
    """True where a table with these columns can be read without naming any."""
    view = View(dict.fromkeys(names, " "))
    return any(dialect.has_fields(view) for dialect in DIALECTS)


def _label(view: View, fields: Fields) -> str | None:
    value = view.at(fields.id) if fields.id else view.get("id")
    return None if is_null(value) or value == "" else as_label(value)


def as_label(value: Any) -> str:
    """Any value as the text of an id: JSON for lists and objects, Python's own text for others."""
    if isinstance(value, (dict, list, bool)):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return str(value).encode("utf-8", "backslashreplace").decode()


def _resolve(view: View, fields: Fields) -> tuple[View, Dialect]:
    """The dialect of a record, with the view of the object that is of it."""
    if fields.instruction and fields.response:
        return view, _named(view, fields.instruction, fields.response)
    if dialect := _recognise(view, fields.side):
        return view, dialect
    return _unwrapped(view, fields.side)


def _read(view: View, dialect: Dialect, fields: Fields) -> tuple[str, str, tuple[Turn, ...]]:
    x, y, before = split_last_pair(dialect.messages(view, fields.side), dialect.where(view))
    x = joined(x, *_inputs(view, fields, known=not isinstance(dialect, Conversation)))
    systems = next((place for place, message in enumerate(before) if message.role != "system"), len(before))
    earlier = [*_system(view, fields), *before[:systems], *_history(view), *before[systems:]]
    return x, y, context_of(earlier)


def _named(view: View, left: str, right: str) -> TwoFields:
    for name in (left, right):
        if not view.has(name):
            raise Unfit("missing_field", f"no field {name!r}; the row has {_names(view.record)}")
        if is_null(view.at(name)):
            raise Unfit("missing_field", f"the field {name!r} is null")
    return TwoFields(left, (right,), exact=True)


def _recognise(view: View, side: str) -> Dialect | None:
    """The first dialect whose fields hold something; failing that, the first whose fields are not null."""
    for filled in (True, False):
        for dialect in DIALECTS:
            if dialect.fits(view, side, filled):
                return dialect
    return None


def _unwrapped(view: View, side: str) -> tuple[View, Dialect]:
    """The one inner object that is of a dialect; what stands beside it stays readable."""
    inner = []
    for name, value in view.record.items():
        value = parsed(value)
        if isinstance(value, Mapping) and (dialect := _recognise(View(value), side)):
            rest = {key: other for key, other in view.record.items() if key != name}
            inner.append((View({**rest, **value}), dialect))
    if len(inner) == 1:
        return inner[0]
    if side != "chosen":
        raise Unfit("missing_field", f"no {side} response; the row has {_names(view.record)}")
    for dialect in DIALECTS:
        dialect.explain(view)
    found = _names(view.record) or "no fields"
    raise Unfit("missing_field", f"found {found}; name the two sides with --instruction-field and --response-field")


def _inputs(view: View, fields: Fields, *, known: bool) -> list[str]:
    """The texts that end the instruction; of a conversation only what the user names does."""
    if fields.input:
        return [view.text_at(fields.input)]
    return [_input_text(view, name) for name in INPUTS if known and not view.is_used(name)]


def _input_text(view: View, name: str) -> str:
    value = view.get(name)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        view.use(name)
        return "\n".join(value)
    return "" if is_null(value) else view.text(name)


def _system(view: View, fields: Fields) -> list[Message]:
    names = [fields.system] if fields.system else [name for name in SYSTEMS if not view.is_used(name)]
    texts = []
    for name in names:
        value = view.at(name) if fields.system else view.get(name)
        if not is_null(value) and value != []:
            view.use(name)
            texts.append(content_text(value, f"the field {name!r}"))
    return [Message("system", text) for text in texts]


def _history(view: View) -> list[Message]:
    """Turns of a history; a history that is plain text is no list of turns, and stays unused."""
    for name in HISTORIES:
        value = parsed(view.get(name))
        if isinstance(value, (list, dict)) and value:
            view.use(name)
            return exchanges_of(value, name)
    return []


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, record))


def _check_encoding(name: str, text: str) -> None:
    # Undecodable bytes and lone \ud800 escapes both end up as lone surrogates in a Python string.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        remedy = "from Windows? convert the file with: iconv -f WINDOWS-1252 -t UTF-8"
        raise Unfit("bad_encoding", f"the {name} is not valid Unicode text ({remedy})") from None
