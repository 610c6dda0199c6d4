"""Evaluation: loss and metrics of a whole data set, independent of batch size, packing and number of processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..distributed import gather_rows
from ..loss import MutualAlignmentLoss, at_least_float32, duality_gap
from ..micro_batch import likelihoods_of
from ..model.hooks import AlignmentOutput
from ..objective import LIKELIHOOD, StepOutputs, TermValue, step_loss
from ..step import SYNTHETIC, Step
from .monitor import DIRECTION_TERMS, NLL_METRICS

GROUP = 4096  # largest number of pairs contrasted with each other; bounds the cost to pairs * GROUP


class Evaluation:
    """Collects the pairs of one evaluation and computes the loss of the whole set as one step.

    Likelihoods are summed over the set and divided by its tokens. Embedding terms contrast all pairs of the set, or
    equal groups of at most GROUP pairs in the order of the data set, weighted by their pairs.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []
        self._loss: Tensor | None = None  # of the last batch, without what a subclass adds
        self._added: list[Tensor] = []  # [2] per batch: pairs * (what a subclass adds to the loss), and pairs

    def add(self, output: AlignmentOutput, pairs: dict[str, Tensor], loss: Tensor) -> None:
        """Add a batch: its likelihoods and embeddings, and its loss as the mixin computes it."""
        assert output.logp is not None
        batch = {name: pairs[name] for name in ("row", "group", "tokens")}
        batch |= {"synthetic": pairs["synthetic"].long(), "logp": output.logp.detach()}
        if output.embed_x is not None and output.embed_y is not None:
            batch |= {"x": at_least_float32(output.embed_x.detach()), "y": at_least_float32(output.embed_y.detach())}
        self._batches.append(batch)
        self._loss = loss.detach()

    def add_loss(self, loss: Tensor) -> None:
        """Add the last batch's loss as compute_loss returned it, including what a subclass adds."""
        assert self._loss is not None
        pairs = torch.tensor(float(len(self._batches[-1]["row"])), dtype=torch.float32, device=loss.device)
        self._added.append(torch.stack([(loss.detach() - self._loss).float() * pairs, pairs]))

    def read(self, module: MutualAlignmentLoss, columns: tuple[int, ...], synthetic_weight: Tensor) -> dict[str, float]:
        """Return the metrics of the set, the same on every process; empty if it has no pairs.

        Args:
            module: computes the terms.
            columns: likelihood columns that are trained, as in encoding.LogpColumn.
            synthetic_weight: float scalar, α.
        """
        if not self._batches:
            return {}
        pairs = self._whole()
        logp, tokens, synthetic = (pairs[name].cpu() for name in ("logp", "tokens", "synthetic"))
        logp, synthetic_weight = logp.double(), synthetic_weight.cpu()
        counts = tokens.new_zeros(2, 4).index_add(0, synthetic, tokens)
        step = Step(1, counts, counts.new_tensor(len(logp)), counts.sum())
        lm_losses = -(logp * step.token_loss_weights({"synthetic": synthetic}, module.alignment, synthetic_weight)).sum(
            0
        )
        metrics = {}
        for name, column in NLL_METRICS:
            if column in columns:
                metrics[name] = -float(logp[:, column].sum() / tokens[:, column].sum())
        terms: dict[str, Tensor] = {}
        if module.alignment.duality_gap_weight > 0:
            terms["duality_gap"] = duality_gap(likelihoods_of(logp, tokens)).mean()
        others: dict[str, float] = {}
        if "x" in pairs:
            values, others = self._contrast(module, pairs)
            terms |= {name: logp.new_tensor(value) for name, value in values.items()}
        outputs = StepOutputs({name: TermValue(value, len(logp)) for name, value in terms.items()}, lm_losses.sum())
        loss, contributions = step_loss(outputs, None, module.alignment)
        del contributions[LIKELIHOOD]
        contributions |= {term: lm_losses[column] for term, column in DIRECTION_TERMS if column in columns}
        metrics |= {name: float(value) for name, value in terms.items()} | others
        if counts[SYNTHETIC].any():
            metrics["synthetic_weight"] = float(synthetic_weight)
        metrics |= {f"loss_{name}": float(value) for name, value in contributions.items()}
        added, count = gather_rows(torch.stack(self._added)).sum(0).tolist()
        metrics["loss"] = float(loss) + added / count
        return {name: value for name, value in metrics.items() if value == value}

    def _whole(self) -> dict[str, Tensor]:
        """Return the pairs of all processes in the order of the data set, without duplicates.

        A sampler may repeat pairs to give every process the same number of batches.
        """
        names = self._batches[0]
        whole: dict[str, Any] = {name: torch.cat([batch[name] for batch in self._batches]) for name in names}
        whole = {name: gather_rows(tensor) for name, tensor in whole.items()}
        keys = torch.stack([whole["row"], whole["group"]], dim=1)  # in a stream, each worker numbers its own rows
        unique, place = keys.unique(dim=0, return_inverse=True)
        first = place.new_full((len(unique),), len(keys))
        first = first.scatter_reduce(0, place, torch.arange(len(keys), dtype=torch.int64, device=place.device), "amin")
        return {name: tensor[first] for name, tensor in whole.items()}

    def _contrast(
        self, module: MutualAlignmentLoss, pairs: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return the embedding terms, unweighted, and their metrics."""
        count = len(pairs["x"])
        means: tuple[dict[str, float], dict[str, float]] = ({}, {})
        parts = [pairs[name].tensor_split(math.ceil(count / GROUP)) for name in ("x", "y", "group")]
        for x, y, group in zip(*parts, strict=True):
            for mean, found in zip(means, module.embedding_terms(x, y, group), strict=True):
                for name, value in found.items():
                    mean[name] = mean.get(name, 0.0) + float(value) * len(x) / count
        return means
