"""The pair inside a row that was tokenised elsewhere, by SFTTrainer's preparation for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...models.encoding import EncodedPair, PairEncoder

MASKS = ("completion_mask", "assistant_masks")


class Unusable(Exception):
    """Why a row cannot be trained on."""


def split_tokenised(record: Mapping[str, Any], encoder: PairEncoder) -> tuple[EncodedPair, list[int]]:
    """The pair of `input_ids` and the mask of its response, 1 where a token is scored.

    Before the first scored token lies the prompt. The markers that the chat template put round the last two turns are
    taken off, since they are laid out anew in both directions, and padding is left out.
    """
    if len(record.get("seq_lengths") or ()) > 1:
        raise Unusable("it is several sequences packed into one: tokenise without packing, pairs are packed whole here")
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
        raise Unusable("no token of it is scored: the masks or labels leave out everything")
    start = scored.index(1)
    context, x = encoder.unframe_prompt(ids[:start])
    begin, stop = encoder.unframe_response(ids[start:])
    span = slice(start + begin, start + stop)
    return EncodedPair(context, x, ids[span]), scored[span]
