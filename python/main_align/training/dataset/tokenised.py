"""split_tokenised: the pair inside a row that was tokenised elsewhere, for example by SFTTrainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...models.encoding import EncodedPair, PairEncoder

MASKS = ("completion_mask", "assistant_masks")


class Unusable(Exception):
    """The reason why a row cannot be trained."""


def split_tokenised(record: Mapping[str, Any], encoder: PairEncoder) -> tuple[EncodedPair, list[int]]:
    """Split `input_ids` into a pair, and return it with the mask of its response, 1 for scored tokens.

    The prompt ends at the first scored token. Padding and the chat template's markers around the last two turns are
    removed; PairEncoder adds markers for both directions.
    """
    if len(record.get("seq_lengths") or ()) > 1:
        raise Unusable(
            "it is several sequences packed into one: tokenise without packing, the trainer packs whole pairs"
        )
    ids = list(record["input_ids"])
    scored = [1] * len(ids)
    for column in MASKS:
        if record.get(column) is not None:
            scored = [a and int(bool(b)) for a, b in zip(scored, record[column], strict=True)]
    if record.get("labels") is not None:
        scored = [a and int(b != -100) for a, b in zip(scored, record["labels"], strict=True)]
    if record.get("attention_mask") is not None:
        real = [place for place, each in enumerate(record["attention_mask"]) if each]
        ids, scored = [ids[place] for place in real], [scored[place] for place in real]
    if 1 not in scored:
        raise Unusable("no token of it is scored: its masks or labels exclude all tokens")
    start = scored.index(1)
    context, x = encoder.unframe_prompt(ids[:start])
    begin, stop = encoder.unframe_response(ids[start:])
    span = slice(start + begin, start + stop)
    return EncodedPair(context, x, ids[span]), scored[span]
