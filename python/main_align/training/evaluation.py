"""Evaluation: the loss and the metrics of a whole data set, however it is cut into batches, rows and processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .collator import X_GIVEN_Y, Y_GIVEN_X
from .distributed import gather_rows
from .hooks import AlignmentOutput
from .loss import MutualAlignmentLoss, at_least_float32, duality_gap
from .step import SYNTHETIC, Update, likelihoods_of

GROUP = 4096  # pairs that are contrasted with each other at most, which bounds the cost to pairs * GROUP


class Evaluation:
    """Collects the pairs of one evaluation and reads the whole set as one update.

    The likelihoods are sums over the set divided by its tokens. The embedding terms are those of all its pairs, or of
    equal groups of at most GROUP in the order of the data set, weighted by their pairs.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []
        self._loss: Tensor | None = None  # of the last batch
        self._added: list[Tensor] = []  # [2] each: pairs times what a subclass adds to the loss, and pairs

    def add(self, output: AlignmentOutput, pairs: dict[str, Tensor], loss: Tensor) -> None:
        """Takes in a batch: its likelihoods and embeddings, and its loss as the mixin has it."""
        assert output.logp is not None
        batch = {name: pairs[name] for name in ("row", "group", "tokens")}
        batch |= {"synthetic": pairs["synthetic"].long(), "logp": output.logp.detach()}
        if output.embed_x is not None and output.embed_y is not None:
            batch |= {"x": at_least_float32(output.embed_x.detach()), "y": at_least_float32(output.embed_y.detach())}
        self._batches.append(batch)
        self._loss = loss.detach()

    def add_loss(self, loss: Tensor) -> None:
        """Takes in the last batch's loss as compute_loss returned it, with what a subclass added."""
        assert self._loss is not None
        pairs = torch.tensor(float(len(self._batches[-1]["row"])), dtype=torch.float32, device=loss.device)
        self._added.append(torch.stack([(loss.detach() - self._loss).float() * pairs, pairs]))

    def read(self, module: MutualAlignmentLoss, columns: tuple[int, ...], alpha: Tensor) -> dict[str, float]:
        """The metrics of the set, the same on every process.

        Args:
            module: terms and weights.
            columns: the likelihoods that are trained, as in collator.Y_GIVEN_X.
            alpha: scalar, the weight of synthetic pairs.
        """
        if not self._batches:
            return {}
        pairs = self._whole()
        logp, tokens, synthetic = (pairs[name].cpu() for name in ("logp", "tokens", "synthetic"))
        logp, alpha = logp.double(), alpha.cpu()
        counts = tokens.new_zeros(2, 4).index_add(0, synthetic, tokens)
        update = Update(1, counts, counts.new_tensor(len(logp)), counts.sum())
        loss = -float((logp * update.token_loss_weights({"synthetic": synthetic}, module.terms, alpha)).sum())
        metrics = {}
        for name, column in (("nll_y_given_x", Y_GIVEN_X), ("nll_x_given_y", X_GIVEN_Y)):
            if column in columns:
                metrics[name] = -float(logp[:, column].sum() / tokens[:, column].sum())
        if module.terms.duality_gap_weight > 0:
            metrics["duality_gap"] = float(duality_gap(likelihoods_of(logp, tokens)).mean())
            loss += module.terms.duality_gap_weight * metrics["duality_gap"]
        if "x" in pairs:
            values, others = self._contrast(module, pairs)
            loss += sum(module.terms.weight(name) * value for name, value in values.items())
            metrics |= values | others
        if counts[SYNTHETIC].any():
            metrics["synthetic_weight"] = float(alpha)
        added, count = gather_rows(torch.stack(self._added)).sum(0).tolist()
        return {"loss": loss + added / count} | {name: value for name, value in metrics.items() if value == value}

    def _whole(self) -> dict[str, Tensor]:
        """All pairs of all processes in the order of the data set; those that fill up the last batch of a process are
        there twice, and are taken once."""
        names = self._batches[0]
        whole: dict[str, Any] = {name: torch.cat([batch[name] for batch in self._batches]) for name in names}
        whole = {name: gather_rows(tensor) for name, tensor in whole.items()}
        keys = torch.stack([whole["row"], whole["group"]], dim=1)  # rows of a stream are numbered by each worker
        unique, place = keys.unique(dim=0, return_inverse=True)
        first = place.new_full((len(unique),), len(keys))
        first = first.scatter_reduce(0, place, torch.arange(len(keys), dtype=torch.int64, device=place.device), "amin")
        return {name: tensor[first] for name, tensor in whole.items()}

    def _contrast(
        self, module: MutualAlignmentLoss, pairs: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """The embedding terms, unweighted, and the other metrics."""
        count = len(pairs["x"])
        means: tuple[dict[str, float], dict[str, float]] = ({}, {})
        parts = [pairs[name].tensor_split(math.ceil(count / GROUP)) for name in ("x", "y", "group")]
        for x, y, group in zip(*parts, strict=True):
            for mean, found in zip(means, module.embedding_terms(x, y, group), strict=True):
                for name, value in found.items():
                    mean[name] = mean.get(name, 0.0) + float(value) * len(x) / count
        return means
