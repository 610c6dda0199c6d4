"""PairSet and Generation: the input pairs of a run, and pairs with one generated side.

A generated row is {id, prompt, completion, synthetic: true, generation: {status, reason, tokens}}. There is one per
input row, in the same order. If the generated text is unusable, that side is null and the status gives the reason; a
text that was cut off is in generation.text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.fields import Fields
from ..data.labels import aligned_flag
from ..data.pairs import Pair, check_text
from ..data.read import open_source
from ..data.sources.source import SourceInfo
from ..errors import UserError
from .config import Direction, LoopConfig

DROPPED = "dropped.jsonl"  # rows that a stage drops, with their texts
EXCERPT = 60  # characters of a text in the log
RESPONSE_FIELDS = ("completion", "response", "output", "text")  # of unpaired_responses, the first one present


@dataclass(frozen=True, slots=True)
class PairSet:
    """All rows of one input.

    Args:
        pairs: the rows in order, including unusable ones with their status.
        info: identity of the file (rows, size, digest).
        name: the source as the user wrote it.
    """

    pairs: list[Pair]
    info: SourceInfo
    name: str

    @property
    def usable(self) -> list[Pair]:
        """Return the rows without a problem."""
        return [pair for pair in self.pairs if pair.status == "ok"]


def read_pairs(source: str, config: LoopConfig) -> PairSet:
    """Read `seed_pairs` or `eval_pairs`. Rows with `aligned: false` get the status "mismatched".

    Raises:
        UserError: no row is usable, or no seed pair has the field of the id.
    """
    fields = Fields(config.instruction_field, config.response_field, config.id_field)
    if not config.instruction_field:  # then response_field is for unpaired_responses only
        fields = Fields(id=config.id_field)
    opened = open_source(source, split=config.split)
    pairs = [check_text(pair) for pair in opened.pairs(fields)]
    if config.id_field and source == config.seed_pairs and not any(pair.own_id for pair in pairs):
        raise UserError(
            f"{source}: no row has the field of id_field {config.id_field!r}; leave it out to number the rows"
        )
    flags = [aligned_flag(row.record) for row in opened.rows()]
    pairs = [_mark_mismatched(pair) if flag == 0 else pair for pair, flag in zip(pairs, flags, strict=True)]
    return _require_usable(PairSet(pairs, opened.inspect(), source), "an instruction and a response")


def read_unpaired_responses(source: str, config: LoopConfig) -> PairSet:
    """Read `unpaired_responses` as pairs with an empty instruction.

    Raises:
        UserError: no row has a response.
    """
    opened = open_source(source, split=config.split)
    name = config.response_field or _find_response_field(opened.rows(), source)
    pairs = opened.pairs(Fields(name, name, config.id_field))
    responses = [replace(check_text(pair, ["response"]), instruction="") for pair in pairs]
    return _require_usable(PairSet(responses, opened.inspect(), source), f"a response in the field {name!r}")


def _find_response_field(rows: Iterator[Any], source: str) -> str:
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row.record or ())
        for name in RESPONSE_FIELDS:
            if name in names:
                return name
    present = f"it has {', '.join(names)}" if names else "it has no rows"
    expected = ", ".join(RESPONSE_FIELDS)
    raise UserError(f"{source}: none of the fields {expected} ({present}); name the field with response_field")


def _mark_mismatched(pair: Pair) -> Pair:
    if pair.status != "ok":
        return pair
    return replace(pair, status="mismatched", reason=f"{pair.where}: its field `aligned` is false")


def _require_usable(pair_set: PairSet, requirement: str) -> PairSet:
    if not pair_set.usable:
        pairs = pair_set.pairs
        first = f"; the first row: {pairs[0].status}, {pairs[0].reason}" if pairs else ""
        raise UserError(f"{pair_set.name}: none of its {len(pairs)} rows has {requirement}{first}")
    return pair_set


@dataclass(frozen=True, slots=True)
class Generation:
    """The generated side of one pair.

    Args:
        status: "ok", or the reason there is no usable text.
        text: the generated text.
        reason: the status in words.
        tokens: number of generated tokens, including the stop token.
    """

    status: str
    text: str = ""
    reason: str = ""
    tokens: int = 0


def generation_row(pair: Pair, direction: Direction, generation: Generation) -> dict[str, Any]:
    """Return one row of a file of generated pairs.

    Args:
        pair: the input row.
        direction: "forward" generates the response, "reverse" the instruction.
        generation: the generated side.
    """
    is_ok = generation.status == "ok"
    text = generation.text if is_ok else None
    x, y = (pair.instruction, text) if direction == "forward" else (text, pair.response)
    details: dict[str, Any] = {
        "status": generation.status,
        "reason": generation.reason,
        "tokens": generation.tokens,
    }
    if not is_ok and generation.text:
        details["text"] = generation.text
    return {"id": pair.id} | _make_row(x, y, pair) | {"synthetic": True, "generation": details}


def read_generations(path: Path) -> list[Pair]:
    """Return the usable pairs of a file of generated pairs."""
    with path.open(encoding="utf-8") as file:
        generated = [json.loads(line)["generation"]["status"] == "ok" for line in file]
    pairs = open_source(path).pairs()
    return [pair for pair, is_ok in zip(pairs, generated, strict=True) if is_ok and pair.status == "ok"]


def training_rows(seed_pairs: list[Pair], generated: list[Pair]) -> list[dict[str, Any]]:
    """Return trainer rows of one format: text, or messages if any pair has earlier turns."""
    as_messages = any(pair.context for pair in (*seed_pairs, *generated))
    rows = []
    for synthetic, pairs in ((False, seed_pairs), (True, generated)):
        for pair in pairs:
            row = _make_row(pair.instruction, pair.response, pair, as_messages=as_messages)
            rows.append(row | ({"synthetic": synthetic} if generated else {}))
    return rows


def _make_row(x: str | None, y: str | None, pair: Pair, *, as_messages: bool | None = None) -> dict[str, Any]:
    """Return prompt and completion as text, or as messages. Default: messages if the pair has earlier turns."""
    if not (bool(pair.context) if as_messages is None else as_messages):
        return {"prompt": x, "completion": y}
    context = [{"role": turn.role, "content": turn.text} for turn in pair.context]
    return {
        "prompt": None if x is None else [*context, {"role": "user", "content": x}],
        "completion": None if y is None else [{"role": "assistant", "content": y}],
    }


def excerpt(text: str) -> str:
    """Return the beginning of a text in quotes and on one line, for the log."""
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= EXCERPT else f'"{line[: EXCERPT - 1]}…"'


def format_counts(counts: Mapping[str, int]) -> str:
    """Return counts as text, largest first: "12 ok, 3 unfinished"."""
    return ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items(), key=lambda item: -item[1]))
