"""PairCollator: a micro-batch of pairs as one packed sequence without padding, with the positions to read.

Pair i is two sequences, ``<x><y>`` and ``<y><x>``, one after the other. If only one direction is trained, the other
sequence ends after the segment that is pooled, or is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from ...models.encoding import EncodedPair, EncodedSequence, LogpColumn, PairEncoder
from ...models.packed_attention import packing_arguments

Directions = Literal["both", "forward", "reverse"]


class PairCollator:
    """Collate pairs (reader.COLUMNS), or lists of pairs from packing, to one batch of CPU tensors.

    The batch has the arguments of the model's forward (``input_ids`` [1, T] and the packing arguments), and ``pairs``::

        rows, targets    int64 [R]: state rows[r] predicts token targets[r]
        segments         int64 [R]: 4 * pair + LogpColumn of its log-probability
        tokens           int64 [N, 4]: number of tokens that each of the four likelihoods sums over
        pool             int64 [4 N]: start and stop of the pooled segment of x, then of y, pair by pair; [0] if
                         nothing is pooled
        group            int64 [N]: pairs of one group are not negatives of each other
        row              int64 [N]: row in the data set
        synthetic        bool [N]

    Args:
        encoder: turns pairs into token sequences.
        directions: likelihoods that are trained.
        pooled: True if embeddings are needed.
        all_likelihoods: True to score the first segment of each sequence too, for the duality gap.
    """

    def __init__(
        self, encoder: PairEncoder, directions: Directions, *, pooled: bool, all_likelihoods: bool = False
    ) -> None:
        self.encoder, self.directions = encoder, directions
        self.pooled, self.all_likelihoods = pooled, all_likelihoods

    def __call__(self, features: Sequence[Any]) -> dict[str, Any]:
        flat = [pair for item in features for pair in (item if isinstance(item, list) else [item])]
        ids: list[int] = []
        lengths: list[int] = []
        rows: list[int] = []
        segments: list[int] = []
        pool: list[int] = []
        for number, pair in enumerate(flat):
            columns = (
                (LogpColumn.Y_GIVEN_X, LogpColumn.X),
                (LogpColumn.X_GIVEN_Y, LogpColumn.Y),
            )  # of the second and the first segment
            for sequence, (second, first), trained in zip(self._sequences(pair), columns, self._trained(), strict=True):
                if sequence is None:
                    continue
                start = len(ids)
                if trained:
                    self._score(rows, segments, start, sequence.second_span, pair, second, number)
                    if self.all_likelihoods:
                        self._score(rows, segments, start, sequence.first_span, pair, first, number)
                if self.pooled:
                    pool += [start + sequence.pool_span[0], start + sequence.pool_span[1]]
                ids += sequence.ids
                lengths.append(len(sequence.ids))
        packed = _ids(ids)
        where, what = _ids(rows), _ids(segments)
        pairs = {
            "rows": where - 1,
            "targets": packed[where],
            "segments": what,
            "tokens": torch.bincount(what, minlength=4 * len(flat)).view(-1, 4),
            "pool": _ids(pool),
            "group": _ids([pair["group"] for pair in flat]),
            "row": _ids([pair["row"] for pair in flat]),
            "synthetic": torch.tensor([pair["synthetic"] for pair in flat], dtype=torch.bool, device="cpu"),
        }
        return {"input_ids": packed[None], **packing_arguments(lengths, "cpu"), "pairs": pairs}

    def tokens_of(self, pair: dict[str, Any]) -> int:
        """Return the number of tokens of all sequences of a pair."""
        return sum(len(sequence.ids) for sequence in self._sequences(pair) if sequence is not None)

    def _trained(self) -> tuple[bool, bool]:
        return self.directions != "reverse", self.directions != "forward"

    def _sequences(self, pair: dict[str, Any]) -> list[EncodedSequence | None]:
        sequences = self.encoder.sequences(EncodedPair(pair["context_ids"], pair["x_ids"], pair["y_ids"]))
        return [
            sequence if trained else _first_only(sequence) if self.pooled else None
            for sequence, trained in zip(sequences, self._trained(), strict=True)
        ]

    def _score(
        self,
        rows: list[int],
        segments: list[int],
        start: int,
        span: tuple[int, int],
        pair: dict[str, Any],
        column: int,
        number: int,
    ) -> None:
        """Append the tokens of one segment, without those of y that its mask leaves out."""
        places = range(start + span[0], start + span[1])
        if column in (LogpColumn.Y_GIVEN_X, LogpColumn.Y) and 0 in pair["y_mask"]:
            ending = [1 in pair["y_mask"]] * (len(places) - len(pair["y_mask"]))
            mask = [*pair["y_mask"], *ending]
            places = [place for place, scored in zip(places, mask, strict=True) if scored]  # type: ignore[assignment]
        rows.extend(places)
        segments.extend([4 * number + column] * len(places))


def _ids(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _first_only(sequence: EncodedSequence) -> EncodedSequence:
    """Cut a sequence after the content of its first segment."""
    stop = sequence.pool_span[1]
    return EncodedSequence(sequence.ids[:stop], (sequence.first_span[0], stop), (stop, stop), sequence.pool_span)
