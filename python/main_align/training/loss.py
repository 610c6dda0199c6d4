"""The mutual-alignment loss as a module, for any training loop; it knows nothing of models or trainers."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from main_kernels import cyclic_consistency, info_nce, mutual_information, pair_scores

from .terms import EMBEDDING_TERMS, LIKELIHOOD_TERMS, AlignmentTerms

log = logging.getLogger(__name__)


class Likelihoods(NamedTuple):
    """Summed log-probabilities of N pairs in nats, floating [N] each, and their token counts."""

    y_given_x: Tensor | None = None
    """log p(y|x)"""
    x_given_y: Tensor | None = None
    """log p(x|y)"""
    y: Tensor | None = None
    """log p(y), for the duality gap"""
    x: Tensor | None = None
    """log p(x), for the duality gap"""
    tokens_y: Tensor | None = None
    """|y|: int64 [N], the tokens summed over"""
    tokens_x: Tensor | None = None
    """|x|: int64 [N]"""


class MutualAlignmentLoss(nn.Module):
    """The weighted sum of MAIN's three dimensions and the supervised losses (arXiv 2504.12913).

    =============  ================================================================================================
    semantic       symmetric InfoNCE of the pairs among their batch (``main_kernels.info_nce``)
    intentional    minus a bound on the mutual information (``main_kernels.mutual_information``)
    structural     cyclic consistency of the two similarity matrices (``main_kernels.cyclic_consistency``)
    forward        -sum_i log p(y_i|x_i) / sum_i |y_i|
    reverse        -sum_i log p(x_i|y_i) / sum_i |x_i|
    duality_gap    mean_i |log p(x_i) + log p(y_i|x_i) - log p(y_i) - log p(x_i|y_i)| / (|x_i| + |y_i|)
    =============  ================================================================================================

    ::

        loss = MutualAlignmentLoss(AlignmentTerms(semantic_weight=1.0, intentional_weight=0.1))
        value, metrics = loss(query, key)  # [N, D] pooled states of instructions and responses
        value.backward()

    Args:
        terms: weights and options; a term of weight 0 costs nothing.

    Raises:
        UserError (a ValueError): for weights or options that make no sense.
    """

    def __init__(self, terms: AlignmentTerms | None = None) -> None:
        super().__init__()
        self.terms = terms or AlignmentTerms()
        self.terms.check_terms()
        self._warned = False

    def forward(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        likelihoods: Likelihoods | None = None,
        *,
        pair_ids: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            query: [N, D] pooled states of the instructions, key: [N, D] those of the responses; they are brought to
                unit length here. None leaves the three embedding terms out.
            likelihoods: what the likelihood terms need; a term whose tensors are missing is left out.
            pair_ids: int64 [N]; pairs with the same id are no negatives of each other.

        Returns:
            (loss, metrics): a float32 scalar, and detached scalars: each term unweighted, and with embeddings
            ``mi`` (mean of the pairs' pointwise estimates, nats, at most log N), ``accuracy_x_to_y`` and
            ``accuracy_y_to_x`` (share of pairs that rank first in the batch).

        Raises:
            ValueError: for shapes or dtypes that do not fit, or where there is neither embedding nor likelihood.
        """
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        if (query is None) != (key is None):
            raise ValueError("query and key come together: got one of them")
        if query is not None and key is not None:
            terms, metrics = self.embedding_terms(query, key, pair_ids)
        if likelihoods is not None:
            terms |= self.likelihood_terms(likelihoods)
        if not terms:
            raise ValueError(
                "no term can be computed: give query and key, or likelihoods, for a term that has a weight"
            )
        total = torch.stack([self.terms.weight(name) * value for name, value in terms.items()]).sum()
        return total, {name: value.detach() for name, value in (terms | metrics).items()}

    def embedding_terms(
        self, query: Tensor, key: Tensor, pair_ids: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The embedding terms, unweighted, and metrics; query[N, D], key[N, D] of any length."""
        active = self.terms.active(EMBEDDING_TERMS)
        if len(query) < 2:
            if active and not self._warned:
                self._warned = True
                log.warning(
                    "a batch of one pair has nothing to contrast it with: %s are zero for it (a larger batch, or "
                    "gradient accumulation, gives them something to do)",
                    ", ".join(active),
                )
            nothing = 0.0 * (at_least_float32(query).sum() + at_least_float32(key).sum())
            return dict.fromkeys(active, nothing), {}
        query, key = (F.normalize(at_least_float32(side), dim=1) for side in (query, key))
        tau, terms = self.terms.contrastive_temperature, {}
        if "semantic" in active:
            terms["semantic"] = info_nce(query, key, temperature=tau, pair_ids=pair_ids)
        if "intentional" in active:
            bound: str = self.terms.mi_estimator
            terms["intentional"] = -mutual_information(query, key, temperature=tau, estimator=bound)  # type: ignore[arg-type]
        if "structural" in active:
            terms["structural"] = cyclic_consistency(query, key)
        with torch.no_grad():
            scores = pair_scores(query, key, temperature=tau, pair_ids=pair_ids)
        metrics = {
            "mi": scores.pmi.mean(),
            "accuracy_x_to_y": (scores.rank_query == 0).float().mean(),
            "accuracy_y_to_x": (scores.rank_key == 0).float().mean(),
        }
        return terms, metrics

    def likelihood_terms(self, given: Likelihoods) -> dict[str, Tensor]:
        """The likelihood terms, unweighted; those whose tensors are missing are left out."""
        terms = {}
        for name in self.terms.active(LIKELIHOOD_TERMS):
            if name == "duality_gap":
                if all(part is not None for part in given):
                    terms[name] = duality_gap(given).mean()
                continue
            logp, tokens = (given.y_given_x, given.tokens_y) if name == "forward" else (given.x_given_y, given.tokens_x)
            if logp is not None and tokens is not None:
                terms[name] = -logp.sum() / tokens.sum().clamp(min=1)
        return terms


def at_least_float32(tensor: Tensor) -> Tensor:
    """In float32, or as it is where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def duality_gap(given: Likelihoods) -> Tensor:
    """[N] |log p(x) + log p(y|x) - log p(y) - log p(x|y)| / (|x|+|y|), nats per token."""
    parts = [part for part in given if part is not None]
    if len(parts) < len(given):
        raise ValueError("likelihoods: the duality gap needs all four and both token counts, some are None")
    y_given_x, x_given_y, y, x, tokens_y, tokens_x = parts
    return ((x + y_given_x) - (y + x_given_y)).abs() / (tokens_x + tokens_y).clamp(min=1)
