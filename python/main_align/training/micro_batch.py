"""micro_batch_outputs: the unweighted terms of one micro-batch, from the tensors of its forward."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..models.encoding import LogpColumn
from .distributed import gather_rows, world_size
from .loss import Likelihoods, MutualAlignmentLoss, duality_gap
from .model.hooks import AlignmentOutput
from .objective import StepOutputs, TermValue
from .step import Step


class Contrast(NamedTuple):
    """Unweighted embedding terms and metrics for the log."""

    values: dict[str, Tensor]
    """scalars, means over `pairs` pairs"""
    pairs: Tensor | int
    """number of pairs that were contrasted with each other"""


def micro_batch_outputs(
    output: AlignmentOutput, pairs: dict[str, Tensor], step: Step, loss: MutualAlignmentLoss, *, contrast: bool = True
) -> tuple[StepOutputs, Contrast | None]:
    """Compute the terms of a micro-batch.

    Args:
        output: the forward's result, with `lm_loss` and `logp`.
        pairs: the batch's `pairs`, as the collator returns them.
        step: the step of the micro-batch.
        loss: computes the terms.
        contrast: False leaves the embedding terms out; an evaluation contrasts its whole data set at the end.

    Returns:
        (outputs, contrast): input of `step_loss`, and values to log. The second is None if nothing was contrasted, or
        if the first micro-batch of the step has returned the values already.
    """
    assert output.logp is not None
    count = len(pairs["row"])
    terms: dict[str, TermValue] = {}
    if loss.alignment.duality_gap_weight > 0:
        gaps = duality_gap(likelihoods_of(output.logp, pairs["tokens"]))
        terms["duality_gap"] = TermValue(gaps.mean(), count * world_size())
    if output.embed_x is None or output.embed_y is None or not contrast:
        return StepOutputs(terms, output.lm_loss), None
    if (cache := step.gradient_cache) is not None:
        for name, gradients in cache.gradients[step.position].items():
            terms[name] = TermValue(cache.values[name], count * world_size(), gradients.dot(output))
        logged = Contrast(cache.values | cache.metrics, step.pairs) if step.position == 0 else None
        return StepOutputs(terms, output.lm_loss), logged
    x, y = gather_rows(output.embed_x), gather_rows(output.embed_y)
    values, metrics = loss.embedding_terms(x, y, gather_rows(pairs["group"]))
    terms |= {name: TermValue(value, len(x)) for name, value in values.items()}
    # a single pair has nothing to be contrasted with, so its zeros are not part of any mean
    return StepOutputs(terms, output.lm_loss), Contrast(values | metrics, len(x)) if len(x) > 1 else None


def likelihoods_of(logp: Tensor, tokens: Tensor) -> Likelihoods:
    """Name the columns of logp, float [N, 4], and tokens, int64 [N, 4]."""
    return Likelihoods(
        y_given_x=logp[:, LogpColumn.Y_GIVEN_X],
        x_given_y=logp[:, LogpColumn.X_GIVEN_Y],
        y=logp[:, LogpColumn.Y],
        x=logp[:, LogpColumn.X],
        tokens_y=tokens[:, LogpColumn.Y_GIVEN_X],
        tokens_x=tokens[:, LogpColumn.X_GIVEN_Y],
    )
