"""Monitor: what is logged of the training, gathered between two log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import UserError
from .collator import X_GIVEN_Y, Y_GIVEN_X
from .distributed import world_size
from .hooks import AlignmentOutput
from .loss import duality_gap
from .metrics import Meter
from .step import SYNTHETIC, Update, likelihoods_of


class Monitor:
    """Metrics of the updates since the last log line, over all processes, and the rate of tokens.

    Args:
        columns: the likelihoods that are trained, as in collator.Y_GIVEN_X.
        duality_gap: whether the duality gap is trained.
    """

    def __init__(self, columns: tuple[int, ...], *, duality_gap: bool) -> None:
        self._columns, self._duality_gap = columns, duality_gap
        self._meter = Meter()
        self._tokens: Tensor | int = 0  # that went through the model, of both directions
        self._last = (0, time.monotonic())  # tokens and time of the last log line

    def measure(
        self, update: Update, pairs: dict[str, Tensor], logp: Tensor, token_loss_weights: Tensor, alpha: Tensor
    ) -> None:
        """Add the likelihoods of a micro-batch: logp[N, 4], and token_loss_weights[N, 4], their factors in the loss."""
        logp, known = logp.detach(), token_loss_weights > 0  # what a token of weight 0 costs was not computed
        nll, tokens = -(logp * known).sum(0), (pairs["tokens"] * known).sum(0)
        for name, column in (("nll_y_given_x", Y_GIVEN_X), ("nll_x_given_y", X_GIVEN_Y)):
            if column in self._columns:
                self._meter.add(name, nll[column], tokens[column])
        if self._duality_gap:
            gaps = duality_gap(likelihoods_of(logp, pairs["tokens"]))
            self._meter.add("duality_gap", gaps.sum(), len(gaps))
        present = (update.tokens[SYNTHETIC].sum() > 0).float()  # the same names on every process, so no `if`
        self._meter.add("synthetic_weight", alpha * present, present)
        if update.position == 0:
            self._tokens = self._tokens + update.length

    def measure_contrast(self, values: dict[str, Tensor], count: Tensor | int) -> None:
        """Takes in means over `count` pairs that were contrasted with each other."""
        for name, value in values.items():
            self._meter.add(name, value * count, count)

    def measure_gradients(
        self,
        update: Update,
        parts: dict[str, Tensor],
        states: Tensor,
        pairs: dict[str, Tensor],
    ) -> None:
        """Takes in the norm of each weighted part's gradient with respect to the backbone's last states of the whole
        update: how hard each pulls. Once a log line, for it walks the heads backward a second time."""
        for name, part in parts.items():
            gradient = None
            if part.requires_grad:
                (gradient,) = torch.autograd.grad(part, states, retain_graph=True, allow_unused=True)
            gradient = torch.zeros_like(states) if gradient is None else gradient / world_size()
            if name != "likelihood":
                update.add_square(f"grad_norm_{name}", gradient)
                continue
            columns = pairs["segments"] % 4
            for term, column in (("forward", Y_GIVEN_X), ("reverse", X_GIVEN_Y)):
                if column in self._columns:
                    update.add_square(f"grad_norm_{term}", gradient[0, pairs["rows"][columns == column]])
        if update.last:
            for name, norm in update.norms().items():
                self._meter.add(name, norm)

    def read(self) -> dict[str, float]:
        """What a log line says, empty where nothing was trained since the last one; starts anew."""
        found = self._meter.read()
        if not found:
            return {}
        (before, when), self._last = self._last, (int(self._tokens), time.monotonic())
        tokens, seconds = self._last[0] - before, self._last[1] - when
        return found | {"num_tokens": self._last[0], "tokens_per_second": tokens / max(seconds, 1e-9)}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For an evaluation: what it logs has nothing of the training, whose clock stands still."""
        meter, self._meter = self._meter, Meter()
        (tokens, when), began = self._last, time.monotonic()
        try:
            yield
        finally:
            self._meter, self._last = meter, (tokens, when + time.monotonic() - began)


def check_finite(
    loss: Tensor, parts: dict[str, Tensor], output: AlignmentOutput, pairs: dict[str, Tensor], step: int
) -> None:
    """UserError that names step, terms and rows where the loss is not finite."""
    if bool(torch.isfinite(loss.detach())):
        return
    broken = [name for name, part in parts.items() if not bool(torch.isfinite(part.detach()))] or ["their sum"]
    fine = torch.ones_like(pairs["row"], dtype=torch.bool)
    for read in (output.logp, output.embed_x, output.embed_y):
        if read is not None:
            fine &= read.detach().isfinite().all(1)
    rows = (pairs["row"][~fine] if not bool(fine.all()) else pairs["row"]).tolist()
    raise UserError(
        f"step {step}: the loss is {float(loss.detach())}; broken: {', '.join(broken)}, in rows "
        f"{', '.join(map(str, rows))} of the data set. Look at these rows; if they are sound, lower the learning rate "
        "or the weight of that term, or train in bfloat16 or float32 instead of float16."
    )
