"""GradientCache: gradients of the embedding terms of a whole step, before its micro-batches run (Gao et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .distributed import gather_rows
from .loss import MutualAlignmentLoss, at_least_float32
from .model.hooks import AlignmentOutput


class EmbeddingGradients(NamedTuple):
    """Gradients of one term with respect to one micro-batch's embeddings, [N, dim] each."""

    x: Tensor
    y: Tensor

    def dot(self, output: AlignmentOutput) -> Tensor:
        """Return the scalar whose gradient with respect to the embeddings is this one."""
        assert output.embed_x is not None
        assert output.embed_y is not None
        return (at_least_float32(output.embed_x) * self.x).sum() + (at_least_float32(output.embed_y) * self.y).sum()


@dataclass(frozen=True)
class GradientCache:
    """Embedding terms of a step, and the gradient that each micro-batch sends back through its own forward.

    Attributes:
        values: unweighted terms over all pairs of the step, detached.
        metrics: mi, accuracy_x_to_y and accuracy_y_to_x over the same pairs.
        gradients: for each micro-batch, the gradients by term.
        rng_states: for each micro-batch, the random generators before its forward.
    """

    values: dict[str, Tensor]
    metrics: dict[str, Tensor]
    gradients: list[dict[str, EmbeddingGradients]]
    rng_states: list[dict[str, Tensor]]


def cache_gradients(
    batches: Sequence[dict[str, Any]],
    embed: Callable[[dict[str, Any]], tuple[AlignmentOutput, Tensor]],
    loss: MutualAlignmentLoss,
    device: torch.device,
) -> GradientCache:
    """Embed all micro-batches without a graph, and differentiate the terms with respect to the embeddings.

    Args:
        batches: the step's micro-batches on this process.
        embed: maps a batch to its embeddings and to its pair ids, int64 [N].
        loss: computes the terms.
        device: device of the forwards.
    """
    x_parts: list[Tensor] = []
    y_parts: list[Tensor] = []
    ids, states = [], []
    for batch in batches:
        states.append(rng_state(device))
        with torch.no_grad():
            output, pair_ids = embed(batch)
        assert output.embed_x is not None
        assert output.embed_y is not None
        x_parts.append(at_least_float32(output.embed_x))
        y_parts.append(at_least_float32(output.embed_y))
        ids.append(pair_ids)
    x, y = torch.cat(x_parts).requires_grad_(), torch.cat(y_parts).requires_grad_()
    with torch.enable_grad():
        values, metrics = loss.embedding_terms(gather_rows(x), gather_rows(y), gather_rows(torch.cat(ids)))
    sizes = [len(part) for part in ids]
    gradients: list[dict[str, EmbeddingGradients]] = [{} for _ in sizes]
    for name, value in values.items():
        dx, dy = torch.autograd.grad(value, (x, y), retain_graph=True)  # the terms share the normalised embeddings
        for position, (part_x, part_y) in enumerate(zip(dx.split(sizes), dy.split(sizes), strict=True)):
            gradients[position][name] = EmbeddingGradients(part_x, part_y)
    return GradientCache({name: value.detach() for name, value in values.items()}, metrics, gradients, states)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's generators on the CPU and on `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore the generators, so that a second forward has the dropout masks of the first."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
