"""TextHashes, duplicate_groups: rows whose texts are equal after normalisation."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from dataclasses import dataclass, field

import numpy as np

from ..data.pairs import Pair

VARIATION_SELECTORS = range(0xFE00, 0xFE10)
LISTED = 10  # groups of each kind that are listed
KINDS = {
    "pair": "the same instruction and response",
    "instruction": "the same instruction",
    "response": "the same response",
}


class _Words(dict[int, int]):
    """A table of str.translate: letters, digits and marks, such as the vowels of Hindi, stay; the rest is a space."""

    def __missing__(self, code: int) -> int:
        is_mark = unicodedata.category(chr(code)).startswith("M") and code not in VARIATION_SELECTORS
        self[code] = code if is_mark or chr(code).isalnum() else ord(" ")
        return self[code]


WORDS = _Words()


def normalised(text: str) -> str:
    """Return a text in NFKC, in lower case, with one space for everything between its words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(WORDS).split())


def text_hash(text: str) -> int:
    """Return 63 bits of a hash of a text; lone surrogates are hashed as well."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass
class TextHashes:
    """Hashes of all pairs, 8 bytes per text. A text that has no words is left out of the groups."""

    kinds: dict[str, array[int]] = field(default_factory=lambda: {kind: array("q") for kind in KINDS})

    def add(self, pair: Pair) -> None:
        """Append the hashes of one pair."""
        x, y = normalised(pair.instruction), normalised(pair.response)
        for kind, text in (("pair", f"{x}\0{y}" if x and y else ""), ("instruction", x), ("response", y)):
            self.kinds[kind].append(text_hash(text) if text else -1)


@dataclass(frozen=True, slots=True)
class DuplicateGroups:
    """Groups of rows with equal texts.

    Args:
        kind: a key of KINDS.
        groups: number of groups of two or more rows.
        extra: rows that would go if one of each group stayed.
        largest: the rows of the largest groups, in file order; the largest group comes first.
    """

    kind: str
    groups: int
    extra: int
    largest: list[list[int]]


def duplicate_groups(hashes: TextHashes) -> list[DuplicateGroups]:
    """Group the rows by their hashes, for each of KINDS."""
    return [_groups(kind, np.frombuffer(values, dtype=np.int64)) for kind, values in hashes.kinds.items()]


def _groups(kind: str, hashes: np.ndarray) -> DuplicateGroups:
    order = np.argsort(hashes, kind="stable")
    order = order[hashes[order] >= 0]
    starts = np.flatnonzero(np.diff(hashes[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    repeated = np.flatnonzero(sizes > 1)
    repeated = repeated[np.argsort(-sizes[repeated], kind="stable")]
    largest = [order[starts[group] : starts[group] + sizes[group]].tolist() for group in repeated[:LISTED]]
    return DuplicateGroups(kind, len(repeated), int((sizes[repeated] - 1).sum()), largest)
