"""read and of_length: the pairs that scoring and training are measured with."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from main_align.data.pairs import Pair
from main_align.data.read import read_pairs
from main_align.models.encoding import PairEncoder
from main_align.models.smollm2 import SMOLLM2

from .command import at_least_one
from .inputs import PAIRS

MORE = 32  # tokens by which a text may have to be longer to have as many again


def add_options(parser: argparse.ArgumentParser, *, pairs: int) -> None:
    """Add the input, the model and the number of pairs.

    Args:
        parser: the parser of a suite.
        pairs: the default number of pairs.
    """
    parser.add_argument(
        "input",
        metavar="PAIRS",
        nargs="?",
        default=PAIRS,
        help="whatever `main-align score` reads (default: examples/pairs.jsonl)",
    )
    parser.add_argument("--model", default=SMOLLM2, help="folder or hub id (default: smollm2)")
    parser.add_argument(
        "--pairs", type=at_least_one, default=pairs, help=f"number of pairs, drawn at random (default {pairs})"
    )


def read(source: str | Path, count: int | None = None) -> list[Pair]:
    """Read the pairs that can be scored, or draw some of them; the same ones every time.

    Args:
        source: whatever `main_align.data.read.read_pairs` reads.
        count: number of pairs. Default: all of them, in order.
    """
    pairs = [pair for pair in read_pairs(source) if pair.status == "ok"]
    return pairs if count is None else random.Random(0).sample(pairs, min(count, len(pairs)))


def of_length(pairs: Sequence[Pair], encoder: PairEncoder, tokens: int, count: int) -> list[Pair]:
    """Cut and join the texts of pairs, so that each pair has the same length.

    Args:
        pairs: pairs with texts to take.
        encoder: the model's encoder.
        tokens: tokens of a pair, both sides together, half of them the instruction's.
        count: number of pairs to make.
    """
    sides = []
    for texts, size in (
        ([pair.instruction for pair in pairs], tokens // 2),
        ([pair.response for pair in pairs], tokens - tokens // 2),
    ):
        ids = _ids("\n".join(texts), encoder)
        ids *= -(-(count * size + MORE) // len(ids))
        sides.append([_text(ids[start : start + size + MORE], size, encoder) for start in range(0, count * size, size)])
    return [Pair(str(row), row, x, y) for row, (x, y) in enumerate(zip(*sides, strict=True), 1)]


def _text(ids: Sequence[int], size: int, encoder: PairEncoder) -> str:
    """Return the beginning of a text with `size` tokens: cut tokens may merge into fewer when they are read again."""
    texts = (str(encoder.tokenizer.decode(ids[:stop])) for stop in range(size, len(ids) + 1))
    for text in texts:
        if len(_ids(text, encoder)) == size:
            return text
    raise ValueError(f"no beginning of this text has {size} tokens")


def _ids(text: str, encoder: PairEncoder) -> list[int]:
    return encoder.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
