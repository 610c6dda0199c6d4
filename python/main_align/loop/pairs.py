"""The pairs of a run: seeds, unlabelled responses, and the rows that a model has written one side of.

A written row is {id, prompt, completion, synthetic: true, synthesis: {status, reason, tokens}}, one a
row of the input and in its order. Where nothing usable was written, that side is null and the status
says why; what a model wrote without coming to an end stands in synthesis.text.
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

RESPONSES = ("completion", "response", "output", "text")  # tried in this order for `unlabelled`


@dataclass(frozen=True, slots=True)
class PairSet:
    """All rows of an input, in order, bad ones with their status, and what identifies it."""

    pairs: list[Pair]
    info: SourceInfo
    name: str

    @property
    def good(self) -> list[Pair]:
        """The rows that can be used."""
        return [pair for pair in self.pairs if pair.status == "ok"]


def read_seeds(source: str, config: LoopConfig) -> PairSet:
    """The pairs of `seeds` or `heldout`; a row marked `aligned: false` is no pair to learn from or be measured on.

    Raises UserError where not one can be used.
    """
    fields = Fields(config.instruction_field, config.response_field, config.id_field)
    if not config.instruction_field:  # response_field alone is that of `unlabelled`
        fields = Fields(id=config.id_field)
    opened = open_source(source, split=config.split)
    pairs = [check_text(pair) for pair in opened.pairs(fields)]
    flags = [aligned_flag(row.record) for row in opened.rows()]
    pairs = [_mismatched(pair) if flag == 0 else pair for pair, flag in zip(pairs, flags, strict=True)]
    return _usable(PairSet(pairs, opened.inspect(), source), "an instruction and a response")


def read_unlabelled(source: str, config: LoopConfig) -> PairSet:
    """Responses as pairs whose instruction is empty. Raises UserError where not one can be used."""
    opened = open_source(source, split=config.split)
    name = config.response_field or _response_field(opened.rows(), source)
    read = opened.pairs(Fields(name, name, config.id_field))
    pairs = [replace(check_text(pair, ["response"]), instruction="") for pair in read]
    found = PairSet(pairs, opened.inspect(), source)
    return _usable(found, f"a response in the field {name!r}")


def _response_field(rows: Iterator[Any], source: str) -> str:
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row.record or ())
        for name in RESPONSES:
            if name in names:
                return name
    found = f"it has {', '.join(names)}" if names else "it has no rows"
    raise UserError(f"{source}: none of the fields {', '.join(RESPONSES)} ({found}); name one with response_field")


def _mismatched(pair: Pair) -> Pair:
    if pair.status != "ok":
        return pair
    return replace(pair, status="mismatched", reason=f"{pair.where}: its field `aligned` is false")


def _usable(found: PairSet, what: str) -> PairSet:
    if not found.good:
        first = f"; the first row: {found.pairs[0].status}, {found.pairs[0].reason}" if found.pairs else ""
        raise UserError(f"{found.name}: none of its {len(found.pairs)} rows holds {what}{first}")
    return found


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote for one pair: a side of it, or a status that says why there is none."""

    status: str
    text: str = ""
    reason: str = ""
    tokens: int = 0


def written_row(pair: Pair, writer: Direction, written: Written) -> dict[str, Any]:
    """The row of a file of written pairs: the forward model writes responses, the reverse instructions."""
    good = written.status == "ok"
    text = written.text if good else None
    x, y = (pair.instruction, text) if writer == "forward" else (text, pair.response)
    row = {"id": pair.id} | as_row(x, y, pair) | {"synthetic": True}
    synthesis: dict[str, Any] = {"status": written.status, "reason": written.reason, "tokens": written.tokens}
    if not good and written.text:
        synthesis["text"] = written.text
    return row | {"synthesis": synthesis}


def as_row(x: str | None, y: str | None, pair: Pair, *, turns: bool | None = None) -> dict[str, Any]:
    """Prompt and completion, as text, or as messages where the pair has turns before it."""
    if not (bool(pair.context) if turns is None else turns):
        return {"prompt": x, "completion": y}
    before = [{"role": turn.role, "content": turn.text} for turn in pair.context]
    return {
        "prompt": None if x is None else [*before, {"role": "user", "content": x}],
        "completion": None if y is None else [{"role": "assistant", "content": y}],
    }


def read_written(path: Path) -> list[Pair]:
    """The usable pairs of a file of written pairs."""
    with path.open(encoding="utf-8") as file:
        good = [json.loads(line)["synthesis"]["status"] == "ok" for line in file]
    pairs = open_source(path).pairs()
    return [pair for pair, usable in zip(pairs, good, strict=True) if usable and pair.status == "ok"]


def training_rows(seeds: list[Pair], written: list[Pair]) -> list[dict[str, Any]]:
    """Rows of one form for the trainer: text unless some pair has turns before it, then messages."""
    turns = any(pair.context for pair in (*seeds, *written))
    rows = []
    for synthetic, pairs in ((False, seeds), (True, written)):
        for pair in pairs:
            row = as_row(pair.instruction, pair.response, pair, turns=turns)
            rows.append(row | ({"synthetic": synthetic} if written else {}))
    return rows


def counts_of(statuses: Mapping[str, int]) -> str:
    """ "12 ok, 3 unfinished" for a message."""
    return ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items(), key=lambda item: -item[1]))
