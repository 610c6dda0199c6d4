"""step_loss: the weighted sum of the terms, the same for the loss module, the trainer and the evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .distributed import world_size
from .terms import AlignmentTerms

LIKELIHOOD = "likelihood"  # name of the contribution of lm_loss: the forward and the reverse term in one


@dataclass(frozen=True)
class TermValue:
    """One unweighted term of a micro-batch.

    Attributes:
        value: scalar, a mean over pairs.
        pairs: weight of `value`: the micro-batch's pairs on all processes, or those of this process times the world
            size. The sum over micro-batches of its mean over processes is `Step.pairs`.
        cached_gradient: scalar whose gradient replaces that of `value`: gradient caching knows the gradient of the
            whole step's term (gradient_cache.py). None: `value` is differentiated.
    """

    value: Tensor
    pairs: int
    cached_gradient: Tensor | None = None

    def contribution(self, step_pairs: Tensor) -> Tensor:
        """Scale the value so that those of all micro-batches add up to the mean over the step's pairs."""
        contribution = self.value * self.pairs / step_pairs
        if self.cached_gradient is None:
            return contribution
        return contribution.detach() + self.cached_gradient - self.cached_gradient.detach()


@dataclass(frozen=True)
class StepOutputs:
    """Inputs of the loss, computed from one micro-batch.

    Attributes:
        terms: unweighted terms by name (terms.EMBEDDING_TERMS and LIKELIHOOD_TERMS). Terms of weight 0 are absent.
        lm_loss: scalar, sum of token_loss_weight * -log p over the tokens of this process's micro-batch. It holds the
            forward and the reverse term, already weighted by `Step.token_loss_weights`. None: they are in `terms`.
    """

    terms: dict[str, TermValue] = field(default_factory=dict)
    lm_loss: Tensor | None = None


def step_loss(
    outputs: StepOutputs, step_pairs: Tensor | None, alignment: AlignmentTerms
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute a micro-batch's contribution to the step's loss.

    ::

        loss = lm_loss * world_size + sum_t weight_t * value_t * pairs_t / step_pairs

    The loss of the step is the sum over its micro-batches and the mean over processes, which is why sums over one
    process's tokens are multiplied by the world size.

    Args:
        outputs: the terms of this micro-batch.
        step_pairs: int64 scalar, `Step.pairs`. None: `outputs` belong to a whole step and are not scaled.
        alignment: weights of the terms.

    Returns:
        (loss, contributions): a scalar, and its summands by name, in the graph. `contributions` has the names of
        `outputs.terms`, and LIKELIHOOD for `lm_loss`.
    """
    contributions: dict[str, Tensor] = {}
    if outputs.lm_loss is not None:
        contributions[LIKELIHOOD] = outputs.lm_loss if step_pairs is None else outputs.lm_loss * world_size()
    for name, term in outputs.terms.items():
        value = term.value if step_pairs is None else term.contribution(step_pairs)
        contributions[name] = alignment.weight(name) * value
    return torch.stack(list(contributions.values())).sum(), contributions
