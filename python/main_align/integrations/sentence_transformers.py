"""Losses for sentence-transformers: MultipleNegativesRankingLoss and its symmetric and cached forms, fused.

They take the place of the classes of the same names in `sentence_transformers.losses`:

    from main_align.integrations.sentence_transformers import MultipleNegativesRankingLoss
    loss = MultipleNegativesRankingLoss(model)

Values and gradients are the same, but the score matrix is never stored whole, and duplicates are no negatives: where
two rows of a batch share a text, neither counts against the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import all_gather, all_gather_with_grad, cos_sim, dot_score, get_rank
from torch import Tensor

from main_kernels.sweep import sweep

from ..data.components import connected

__all__ = [
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
]

_HASH_BASE = 6364136223846793005  # odd, so every power of it is a unit modulo 2^64
_SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}


class _Fused:
    """Computes the loss of embeddings by one sweep over the scores; a base class of every loss here."""

    _text_hashes: list[Tensor] | None = None

    def _check(self: Any) -> None:
        name = type(self).__name__
        if self.similarity_fct not in (cos_sim, dot_score):
            raise ValueError(f"similarity_fct: expected cos_sim or dot_score, got {self.similarity_fct!r}")
        if unknown := set(self.directions) - {"query_to_doc", "doc_to_query"}:
            raise ValueError(
                f"directions: expected query_to_doc and doc_to_query, got {', '.join(sorted(unknown))}; "
                f"sentence_transformers.losses.{name} has the others"
            )
        if self.hardness_mode is not None:
            raise ValueError(
                f"hardness_mode: expected None, got {self.hardness_mode!r}; sentence_transformers.losses.{name} has it"
            )

    def forward(self: Any, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        features = list(sentence_features)
        self._text_hashes = _hashes(features)
        try:
            return super().forward(features, labels)  # type: ignore[misc]
        finally:
            self._text_hashes = None

    def _loss(self: Any, embeddings: Sequence[Tensor]) -> Tensor:
        if len(embeddings) < 2:
            raise ValueError(f"sentence_features: expected an anchor and a positive, got {len(embeddings)} columns")
        if len(embeddings[0]) != len(embeddings[1]):
            raise ValueError(
                "sentence_features: expected as many anchors as positives, "
                f"got {len(embeddings[0])} and {len(embeddings[1])}"
            )
        if self.similarity_fct is cos_sim:
            embeddings = [F.normalize(each, dim=1) for each in embeddings]
        hashes, count, start = self._text_hashes, len(embeddings[0]), 0
        if self.gather_across_devices:
            counts = all_gather(torch.tensor([count], dtype=torch.int64, device=embeddings[0].device)).tolist()
            if len(set(counts)) > 1:  # collectives need one shape: gloo aborts, NCCL may mix up rows
                raise ValueError(
                    f"sentence_features: expected as many rows in every process, got {', '.join(map(str, counts))}; "
                    "set dataloader_drop_last=True"
                )
            embeddings = [all_gather_with_grad(each) for each in embeddings]
            hashes = None if hashes is None else [all_gather(each) for each in hashes]
            start = get_rank() * count
        queries, positives = embeddings[:2]
        row_ids, column_ids = (None, None) if hashes is None else _pair_ids(hashes)
        own = slice(start, start + count)
        own_ids = None if row_ids is None else row_ids[own]
        targets = torch.arange(start, start + count, dtype=torch.int64, device=queries.device)
        is_symmetric, is_whole = "doc_to_query" in self.directions, len(queries) == count
        swept = sweep(
            queries[own],
            torch.cat(list(embeddings[1:])),
            scale=self.scale,
            targets=targets,
            row_ids=own_ids,
            column_ids=column_ids,
            column_lse=is_symmetric and is_whole,
        )
        loss = swept.row_nll()
        if is_symmetric:
            if is_whole:
                back = swept.column_nll(own)
            else:  # a process has only its own rows of the score matrix, so no column of it
                back = sweep(
                    positives[own], queries, scale=self.scale, targets=targets, row_ids=own_ids, column_ids=row_ids
                ).row_nll()
            loss = torch.logaddexp(loss, back) if self.partition_mode == "joint" else (loss + back) / 2
        return loss.mean()


class MultipleNegativesRankingLoss(_Fused, losses.MultipleNegativesRankingLoss):
    """InfoNCE with in-batch negatives, fused.

    Args:
        args: arguments of `sentence_transformers.losses.MultipleNegativesRankingLoss`.
        kwargs: arguments of the same class. `similarity_fct` is cos_sim or dot_score, `directions` holds query_to_doc
            and doc_to_query only, and there is no `hardness_mode`.

    Raises:
        ValueError: an argument is not supported.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check()

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """Compute the loss of embeddings.

        Args:
            embeddings: [N, D] of the anchors, the positives and each column of negatives.
            labels: unused.
        """
        return self._loss(embeddings)


class CachedMultipleNegativesRankingLoss(_Fused, losses.CachedMultipleNegativesRankingLoss):
    """MultipleNegativesRankingLoss with gradient caching: the model runs on mini-batches, the loss on the whole batch.

    Args:
        args: arguments of `sentence_transformers.losses.CachedMultipleNegativesRankingLoss`.
        kwargs: arguments of the same class, with the limits of MultipleNegativesRankingLoss. The scores need no
            mini-batches, so `mini_batch_size` is that of the model alone.

    Raises:
        ValueError: an argument is not supported.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check()

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss of embeddings.

        Args:
            reps: the mini-batches of the anchors, the positives and each column of negatives, [n, D] each.
            labels: unused.
            with_backward: also compute the gradients of `reps`, and return the loss without its graph.
        """
        loss = self._loss([torch.cat(parts) for parts in reps])
        if with_backward:
            loss.backward()
        return loss.detach() if with_backward else loss


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """Mean of both directions: anchors pick positives, and positives pick anchors.

    Args:
        args: arguments of MultipleNegativesRankingLoss.
        kwargs: arguments of the same class, except `directions` and `partition_mode`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_SYMMETRIC, **kwargs)


class CachedMultipleNegativesSymmetricRankingLoss(CachedMultipleNegativesRankingLoss):
    """MultipleNegativesSymmetricRankingLoss with gradient caching.

    Args:
        args: arguments of CachedMultipleNegativesRankingLoss.
        kwargs: arguments of the same class, except `directions` and `partition_mode`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_SYMMETRIC, **kwargs)


def _hashes(features: Sequence[dict[str, Tensor]]) -> list[Tensor] | None:
    """Return a hash of each text, int64[N] a column, or None if a column has no padded token ids."""
    found = []
    for column in features:
        ids, mask = column.get("input_ids"), column.get("attention_mask")
        if ids is None or mask is None or ids.dim() != 2 or mask.shape != ids.shape:
            return None
        # a polynomial in the place among the tokens, so padding on either side changes nothing
        place = mask.long().cumsum(1) * mask.long()
        powers = ids.new_full(ids.shape[1:], _HASH_BASE, dtype=torch.int64).cumprod(0)
        powers = F.pad(powers, (1, 0))  # place 0 is padding
        found.append(((ids.long() + 1) * powers[place]).sum(1))
    return found


def _pair_ids(hashes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ids of rows and of documents; equal ids are no negatives of each other.

    Rows that share an anchor or a positive have one id. A hard negative has the id of the rows whose positive it is.
    """
    columns = [column.tolist() for column in hashes]
    rows = connected(columns[0], columns[1])
    by_positive = dict(zip(columns[1], rows, strict=True))
    texts = [text for column in columns[2:] for text in column]
    negatives = [by_positive.get(text, len(rows) + index) for index, text in enumerate(texts)]
    device = hashes[0].device
    row_ids = torch.tensor(rows, dtype=torch.int64, device=device)
    return row_ids, torch.tensor([*rows, *negatives], dtype=torch.int64, device=device)
