"""One optimiser step's micro-batches: what has to be counted over all of them, and over all processes, beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .collator import X_GIVEN_Y, Y_GIVEN_X, X, Y
from .distributed import sum_over_processes
from .loss import Likelihoods
from .terms import AlignmentTerms

SEED, SYNTHETIC = 0, 1


@dataclass
class EmbeddingGradients:
    """The embedding terms of the whole update, and what each micro-batch is to send back through its embeddings."""

    terms: dict[str, Tensor]  # unweighted values
    metrics: dict[str, Tensor]
    gradients: list[dict[str, tuple[Tensor, Tensor]]]  # per micro-batch: term -> d(term)/d(x), d(term)/d(y), [N, dim]
    generators: list[Any]  # the state of the random generators before each micro-batch's forward


@dataclass
class Update:
    """Counted over all micro-batches and processes."""

    micro_batches: int
    tokens: Tensor  # [2, 4] scored tokens of the seeds and the synthetic pairs; columns of the log-probabilities
    pairs: Tensor  # scalar
    length: Tensor  # scalar, tokens that go through the model
    position: int = 0  # of the micro-batch that comes next
    cached: EmbeddingGradients | None = None
    batches: Sequence[dict[str, Any]] = field(default_factory=list)
    losses: Tensor | None = None  # [2, 4] sums of -log p so far on this process
    squares: dict[str, Tensor] = field(default_factory=dict)  # of gradients so far on this process

    @classmethod
    def of(cls, batches: Sequence[dict[str, Any]], device: torch.device) -> Update:
        """One collective for everything; `batches` as the collator makes them."""
        tokens = torch.zeros(2, 4, dtype=torch.int64, device=device)
        count = length = 0
        for batch in batches:
            each, synthetic = (batch["pairs"][name].to(device) for name in ("tokens", "synthetic"))
            tokens.index_add_(0, synthetic.long(), each)
            count, length = count + len(each), length + batch["input_ids"].numel()
        numbers = torch.cat([tokens.flatten(), torch.tensor([count, length], dtype=torch.int64, device=device)])
        numbers = sum_over_processes(numbers)
        return cls(len(batches), numbers[:8].view(2, 4), numbers[8], numbers[9], batches=batches)

    @property
    def last(self) -> bool:
        return self.position == self.micro_batches - 1

    def token_loss_weights(self, pairs: dict[str, Tensor], terms: AlignmentTerms, alpha: Tensor) -> Tensor:
        """[N, 4] factors of a token's -log p such that their sum over the whole update is
        forward_weight * L(y|x) + reverse_weight * L(x|y). Each L is alpha times the mean over the tokens of synthetic
        pairs plus 1 - alpha times the mean over those of seed pairs, or the plain mean if there is only one kind."""
        present = self.tokens > 0  # [2, 4]
        share = torch.stack([1 - alpha, alpha])[:, None].expand(2, 4)
        share = torch.where(present.all(0), share, present.to(share.dtype))
        each = share / self.tokens.clamp(min=1)
        scale = each.new_zeros(4)
        scale[Y_GIVEN_X], scale[X_GIVEN_Y] = terms.forward_weight, terms.reverse_weight
        return (each * scale)[pairs["synthetic"].long()]

    def add_losses(self, nll: Tensor, synthetic: Tensor) -> None:
        """nll[N, 4] of a micro-batch's pairs; synthetic bool [N]."""
        sums = nll.new_zeros(2, 4).index_add(0, synthetic.long(), nll.detach())
        self.losses = sums if self.losses is None else self.losses + sums

    def mean_losses(self) -> Tensor:
        """[2] of seeds and synthetic pairs, over all processes: mean -log p per token of the trained directions, summed
        over these; NaN for a kind that is absent."""
        assert self.losses is not None
        trained = [Y_GIVEN_X, X_GIVEN_Y]
        sums, tokens = sum_over_processes(self.losses)[:, trained], self.tokens[:, trained]
        return torch.where(tokens.sum(1) > 0, (sums / tokens.clamp(min=1)).sum(1), torch.nan)

    def add_square(self, name: str, gradient: Tensor) -> None:
        """Adds a gradient to the one whose norm is called `name`."""
        square = gradient.float().square().sum()
        self.squares[name] = self.squares[name] + square if name in self.squares else square

    def norms(self) -> dict[str, Tensor]:
        """The norms of all that was added on all processes."""
        total = sum_over_processes(torch.stack(list(self.squares.values()))).sqrt()
        return dict(zip(self.squares, total.unbind(), strict=True))


def likelihoods_of(logp: Tensor, tokens: Tensor) -> Likelihoods:
    """logp[N, 4], tokens[N, 4] as the loss module takes them."""
    return Likelihoods(
        y_given_x=logp[:, Y_GIVEN_X],
        x_given_y=logp[:, X_GIVEN_Y],
        y=logp[:, Y],
        x=logp[:, X],
        tokens_y=tokens[:, Y_GIVEN_X],
        tokens_x=tokens[:, X_GIVEN_Y],
    )
