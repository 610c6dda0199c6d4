"""Step: counts over all micro-batches and processes of one optimiser step, which its loss is divided by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models.devices import accumulator_dtype
from ..models.encoding import LogpColumn
from .distributed import sum_over_processes
from .gradient_cache import GradientCache
from .terms import AlignmentTerms

SEED, SYNTHETIC = 0, 1


@dataclass
class Step:
    """One optimiser step: the counts of all its micro-batches on all processes, and sums gathered on the way.

    Attributes:
        micro_batches: number of micro-batches on this process.
        tokens: int64 [2, 4]. Scored tokens of the seed (SEED) and synthetic pairs (SYNTHETIC) by likelihood column.
        pairs: int64 scalar.
        model_tokens: int64 scalar, tokens that pass through the model.
        position: index of the micro-batch in progress.
        gradient_cache: embeddings' gradients, if the contrast spans several micro-batches.
        batches: the micro-batches of this process.
        nll_sums: float64 [2, 4]. Sums of -log p so far on this process.
        squares: squared gradient norms so far on this process, by name.
    """

    micro_batches: int
    tokens: Tensor
    pairs: Tensor
    model_tokens: Tensor
    position: int = 0
    gradient_cache: GradientCache | None = None
    batches: Sequence[dict[str, Any]] = field(default_factory=list)
    nll_sums: Tensor | None = None
    squares: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def count(cls, batches: Sequence[dict[str, Any]], device: torch.device) -> Step:
        """Count the tokens and pairs of the collator's batches over all processes, in one collective."""
        tokens = torch.zeros(2, 4, dtype=torch.int64, device=device)
        pairs = model_tokens = 0
        for batch in batches:
            per_pair, synthetic = (batch["pairs"][name].to(device) for name in ("tokens", "synthetic"))
            tokens.index_add_(0, synthetic.long(), per_pair)
            pairs, model_tokens = pairs + len(per_pair), model_tokens + batch["input_ids"].numel()
        scalars = torch.tensor([pairs, model_tokens], dtype=torch.int64, device=device)
        counts = sum_over_processes(torch.cat([tokens.flatten(), scalars]))
        return cls(len(batches), counts[:-2].view(2, 4), counts[-2], counts[-1], batches=batches)

    @property
    def is_last(self) -> bool:
        """True in the last micro-batch."""
        return self.position == self.micro_batches - 1

    def token_loss_weights(
        self, pairs: dict[str, Tensor], alignment: AlignmentTerms, synthetic_weight: Tensor
    ) -> Tensor:
        """Return the factor of each token's -log p in the loss, float [N, 4] by pair and likelihood column.

        The sum over the whole step is forward_weight * L(y|x) + reverse_weight * L(x|y), where each
        L = α * (mean over tokens of synthetic pairs) + (1 - α) * (mean over tokens of seed pairs), or the plain mean if
        the step has only one kind.

        Args:
            pairs: the batch's `pairs`, as the collator returns them.
            alignment: forward_weight and reverse_weight.
            synthetic_weight: float scalar, α.
        """
        present = self.tokens > 0  # [2, 4]
        by_kind = torch.stack([1 - synthetic_weight, synthetic_weight])[:, None].expand(2, 4)
        by_kind = torch.where(present.all(0), by_kind, present.to(by_kind.dtype))
        per_token = by_kind / self.tokens.clamp(min=1)
        weights = per_token.new_zeros(4)
        weights[LogpColumn.Y_GIVEN_X].fill_(alignment.forward_weight)  # an assignment would wait for the GPU
        weights[LogpColumn.X_GIVEN_Y].fill_(alignment.reverse_weight)
        return (per_token * weights)[pairs["synthetic"].long()]

    def add_nll(self, nll: Tensor, synthetic: Tensor) -> None:
        """Add a micro-batch's -log p, float [N, 4]; synthetic: bool [N]."""
        nll = nll.detach().to(accumulator_dtype(nll.device))
        sums = nll.new_zeros(2, 4).index_add(0, synthetic.long(), nll)
        self.nll_sums = sums if self.nll_sums is None else self.nll_sums + sums

    def mean_nll(self) -> Tensor:
        """Return [2] of seed and synthetic pairs over all processes: -log p per token, summed over both directions.

        NaN for a kind without tokens.
        """
        assert self.nll_sums is not None
        trained = [LogpColumn.Y_GIVEN_X, LogpColumn.X_GIVEN_Y]
        sums, tokens = sum_over_processes(self.nll_sums)[:, trained], self.tokens[:, trained]
        return torch.where(tokens.sum(1) > 0, (sums / tokens.clamp(min=1)).sum(1), torch.nan)

    def add_square(self, name: str, gradient: Tensor) -> None:
        """Add a micro-batch's gradient to the one whose norm is called `name`."""
        square = gradient.float().square().sum()
        self.squares[name] = self.squares[name] + square if name in self.squares else square

    def norms(self) -> dict[str, Tensor]:
        """Return the norms over all micro-batches and processes."""
        total = sum_over_processes(torch.stack(list(self.squares.values()))).sqrt()
        return dict(zip(self.squares, total.unbind(), strict=True))
