"""MutualAlignmentLoss: the mutual-alignment loss as a module for any training loop, without models or trainers."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from main_kernels import cyclic_consistency, info_nce, mutual_information, pair_scores
from main_kernels.checks import check_dense, check_pairs, check_vector

from ..checks import check_types
from .objective import StepOutputs, TermValue, step_loss
from .terms import EMBEDDING_TERMS, LIKELIHOOD_TERMS, AlignmentTerms

log = logging.getLogger(__name__)


class Likelihoods(NamedTuple):
    """Summed log-probabilities of N pairs of an instruction x and a response y, and their token counts."""

    y_given_x: Tensor | None = None
    """log p(y|x): floating [N], nats"""
    x_given_y: Tensor | None = None
    """log p(x|y): floating [N], nats"""
    y: Tensor | None = None
    """log p(y): floating [N], nats. Needed by the duality gap only."""
    x: Tensor | None = None
    """log p(x): floating [N], nats. Needed by the duality gap only."""
    tokens_y: Tensor | None = None
    """|y|: int64 [N], the tokens summed over"""
    tokens_x: Tensor | None = None
    """|x|: int64 [N]"""


class MutualAlignmentLoss(nn.Module):
    """Compute the weighted sum of MAIN's three dimensions and the supervised losses (arXiv 2504.12913).

    | term | value |
    |---|---|
    | semantic | symmetric InfoNCE of the pairs within their batch (`main_kernels.info_nce`) |
    | intentional | minus a bound on the mutual information (`main_kernels.mutual_information`) |
    | structural | cyclic consistency of the two similarity matrices (`main_kernels.cyclic_consistency`) |
    | forward | -sum_i log p(y_i\\|x_i) / sum_i \\|y_i\\| |
    | reverse | -sum_i log p(x_i\\|y_i) / sum_i \\|x_i\\| |
    | duality_gap | mean over pairs of \\|log p(x) + log p(y\\|x) - log p(y) - log p(x\\|y)\\| / (\\|x\\| + \\|y\\|) |

    ```python
    loss = MutualAlignmentLoss(AlignmentTerms(semantic_weight=1.0, intentional_weight=0.1))
    value, metrics = loss(query, key)  # [N, D] pooled states of instructions and responses
    value.backward()
    ```

    Args:
        alignment: weights and options of the terms. A term of weight 0 is not computed. Default: `AlignmentTerms()`.

    Raises:
        UserError: (a ValueError) if a weight or option is out of range.
    """

    def __init__(self, alignment: AlignmentTerms | None = None) -> None:
        check_types(MutualAlignmentLoss.__init__, locals())
        super().__init__()
        self.alignment = alignment or AlignmentTerms()
        self.alignment.check_terms()
        self._warned = False

    def forward(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        likelihoods: Likelihoods | None = None,
        *,
        pair_ids: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            query: floating [N, D], pooled states of the instructions. They are normalised here. None leaves the three
                embedding terms out.
            key: floating [N, D], pooled states of the responses. None only if `query` is.
            likelihoods: log-probabilities and token counts. A likelihood term whose tensors are None is left out.
            pair_ids: int64 [N]. Pairs with the same id are not negatives of each other. Default: all ids differ.

        Returns:
            (loss, metrics): a float32 scalar, and detached scalars: each term, unweighted; with embeddings also ``mi``
            (mean of the pairs' pointwise estimates, nats, at most log N), ``accuracy_x_to_y`` and ``accuracy_y_to_x``
            (fraction of pairs that rank first in the batch).

        Raises:
            ValueError: if shapes, dtypes or devices do not fit, or if no term can be computed.
        """
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        if (query is None) != (key is None):
            raise ValueError("query and key: expected both or neither, got one of them")
        if query is not None and key is not None:
            check_pairs(query, key)
            terms, metrics = self.embedding_terms(query, key, pair_ids)
        if likelihoods is not None:
            _check_likelihoods(likelihoods)
            terms |= self.likelihood_terms(likelihoods)
        if not terms:
            raise ValueError(
                "no term can be computed: pass query and key, or likelihoods, for a term whose weight is above 0"
            )
        outputs = StepOutputs({name: TermValue(value, pairs=1) for name, value in terms.items()})
        loss, _ = step_loss(outputs, None, self.alignment)
        return loss, {name: value.detach() for name, value in (terms | metrics).items()}

    def embedding_terms(
        self, query: Tensor, key: Tensor, pair_ids: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the embedding terms, unweighted, and their metrics.

        Args:
            query: floating [N, D], pooled states of the instructions, of any length.
            key: floating [N, D], pooled states of the responses.
            pair_ids: int64 [N] or None. Pairs with the same id are not negatives of each other.

        Returns:
            (terms, metrics): scalars by name. A single pair has nothing to be contrasted with: its terms are zeros in
            the graph, and there are no metrics.
        """
        active = self.alignment.active(EMBEDDING_TERMS)
        if query.shape[0] < 2:  # len() would make a constant of it in torch.export
            if active and not self._warned:
                self._warned = True
                log.warning(
                    "a batch of one pair has no negatives, so %s are zero: use a larger batch or gradient accumulation",
                    ", ".join(active),
                )
            zero = 0.0 * (at_least_float32(query).sum() + at_least_float32(key).sum())
            return dict.fromkeys(active, zero), {}
        query, key = (F.normalize(at_least_float32(side), dim=1) for side in (query, key))
        tau, terms = self.alignment.contrastive_temperature, {}
        if "semantic" in active:
            terms["semantic"] = info_nce(query, key, temperature=tau, pair_ids=pair_ids)
        if "intentional" in active:
            bound: str = self.alignment.mi_estimator
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

    def likelihood_terms(self, likelihoods: Likelihoods) -> dict[str, Tensor]:
        """Compute the likelihood terms, unweighted.

        Args:
            likelihoods: log-probabilities and token counts. A term whose tensors are None is left out.

        Returns:
            Scalars by name, nats per token.
        """
        terms = {}
        for name in self.alignment.active(LIKELIHOOD_TERMS):
            if name == "duality_gap":
                if all(part is not None for part in likelihoods):
                    terms[name] = duality_gap(likelihoods).mean()
                continue
            logp, tokens = {
                "forward": (likelihoods.y_given_x, likelihoods.tokens_y),
                "reverse": (likelihoods.x_given_y, likelihoods.tokens_x),
            }[name]
            if logp is not None and tokens is not None:
                terms[name] = -logp.sum() / tokens.sum().clamp(min=1)
        return terms


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert to float32, or return the tensor as it is if its dtype is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_likelihoods(likelihoods: Likelihoods) -> None:
    parts = {f"likelihoods.{name}": part for name, part in likelihoods._asdict().items() if part is not None}
    if not parts:
        return
    first, like = next(iter(parts.items()))
    check_dense(first, like)  # before its length is read
    for name, part in parts.items():
        check_vector(name, part, like.numel(), integer="tokens" in name, like=like)


def duality_gap(likelihoods: Likelihoods) -> Tensor:
    """Return floating [N]: |log p(x) + log p(y|x) - log p(y) - log p(x|y)| / (|x|+|y|), nats per token."""
    parts = [part for part in likelihoods if part is not None]
    if len(parts) < len(likelihoods):
        raise ValueError("likelihoods: the duality gap needs all four and both token counts, got None for some")
    y_given_x, x_given_y, y, x, tokens_y, tokens_x = parts
    return ((x + y_given_x) - (y + x_given_y)).abs() / (tokens_x + tokens_y).clamp(min=1)
