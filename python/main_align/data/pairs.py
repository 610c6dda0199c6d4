"""Pair, Turn, STATUSES, is_unicode: one instruction-response pair and the statuses that a row can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

STATUSES: dict[str, str] = {
    "ok": "scored",
    "truncated": "scored after truncation to --max-length (--truncate)",
    "empty_instruction": "the instruction has no text",
    "empty_response": "the response has no text",
    "too_long": "longer than --max-length tokens",
    "bad_json": "the row is not a JSON object",
    "bad_csv": "the row does not fit the header, or its quotes are broken",
    "missing_field": "a field is absent, null or not text",
    "bad_encoding": "the row is not valid UTF-8",
    "unknown_token": "the tokenizer returns a token id that the model has no embedding for",
    "unsupported_turns": "the conversation does not end in a user turn and an assistant turn",
    "non_finite": "the model returned NaN or infinity",
    "out_of_memory": "the pair alone exceeds the memory of the device",
    "mismatched": "the row has `aligned: false`, and the loop trains on aligned pairs",
    "unfinished": "the model did not end its turn within max_new_tokens",
}

SCORED = frozenset({"ok", "truncated"})
"""Statuses of rows with scores. All other rows have null scores."""

SIDES = ("instruction", "response")
NOT_UNICODE = "is not valid Unicode text (from Windows? convert the file with: iconv -f WINDOWS-1252 -t UTF-8)"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Args:
        role: "system", "user" or "assistant".
        text: the content of the turn.
    """

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of the input. If it cannot be scored, `status` and `reason` say why.

    Args:
        id: the row's own id as text, or `str(line)` if it has none. It need not be unique.
        line: position counted from 1: the line of a .jsonl or .csv file, else the row number.
        instruction: the instruction, x. Default: empty.
        response: the response, y. Default: empty.
        context: the system turn and earlier turns. The model reads them; they are not scored. Default: none.
        status: a key of STATUSES. Default: "ok".
        reason: one sentence on the status. Default: empty.
        unit: the unit of `line`, "line" or "row". Default: "line".
        own_id: True if the row has an id of its own. Default: False.
    """

    id: str
    line: int
    instruction: str = ""
    response: str = ""
    context: tuple[Turn, ...] = ()
    status: str = "ok"
    reason: str = ""
    unit: str = "line"
    own_id: bool = False

    @property
    def where(self) -> str:
        """Return the position for use in a message: "line 3" or "row 3"."""
        return f"{self.unit} {self.line}"


def is_unicode(text: str) -> bool:
    """Return False for text with a lone surrogate: an undecodable byte, or an escape such as `\\ud83d` in JSON."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def with_system(pair: Pair) -> Pair:
    """Return the pair with its system prompt in front of its instruction, and the other turns as its context."""
    prompts = [turn.text for turn in pair.context if turn.role == "system"]
    if not prompts:
        return pair
    others = tuple(turn for turn in pair.context if turn.role != "system")
    return replace(pair, instruction="\n\n".join((*prompts, pair.instruction)), context=others)


def check_text(pair: Pair, sides: Sequence[str] = SIDES) -> Pair:
    """Return the pair, with the status `bad_encoding`, `empty_instruction` or `empty_response` if that is its problem.

    Args:
        pair: the pair. One that a caller made has not been checked by `pair_from_record`.
        sides: the sides that need text. Default: both.
    """
    texts = [(side, getattr(pair, side)) for side in sides]
    for name, text in [*texts, *((f"{turn.role} turn", turn.text) for turn in pair.context)]:
        if pair.status == "ok" and not is_unicode(text):
            return replace(pair, status="bad_encoding", reason=f"{pair.where}: the {name} {NOT_UNICODE}")
    for side in sides:
        if pair.status == "ok" and not getattr(pair, side).strip():
            return replace(pair, status=f"empty_{side}", reason=f"{pair.where}: the {side} has no text")
    return pair
