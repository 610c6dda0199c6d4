"""One instruction-response pair on its way to the scorer, and the statuses a row can end with."""

from __future__ import annotations

from dataclasses import dataclass

STATUSES: dict[str, str] = {
    "ok": "scored",
    "truncated": "scored after being cut to --max-length, as --truncate asked",
    "empty_instruction": "the instruction holds no text",
    "empty_response": "the response holds no text",
    "too_long": "longer than --max-length tokens",
    "bad_json": "the row is not a JSON object",
    "bad_csv": "the row does not fit the header, or its quotes are broken",
    "missing_field": "a field is absent, null or not text",
    "bad_encoding": "the row is not valid UTF-8",
    "unknown_token": "the tokenizer makes a token of it that the model has no embedding for",
    "unsupported_turns": "the conversation does not end in a user turn and an assistant turn",
    "non_finite": "the model returned NaN or infinity",
    "out_of_memory": "the pair does not fit the device even alone",
    "mismatched": "the row says `aligned: false`, and the loop trains on pairs",
    "unfinished": "the model did not end its turn within max_new_tokens",
}

SCORED = frozenset({"ok", "truncated"})
"""The statuses of rows that carry scores; every other row carries nulls."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of the input; a row that cannot be scored says so in `status` and `reason`.

    `line` counts from 1 in `unit`s: the line of a .jsonl or .csv file, the row number of anything else. `id` is a
    label: the row's own id as text, or `str(line)` where it has none (`own_id` is False then). It need not be unique.
    `context` holds the system turn and the earlier turns: given to the model, never scored.
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
        """The row's place for a message: "line 3" or "row 3"."""
        return f"{self.unit} {self.line}"
