"""Monitor, check_finite: training metrics of a log line, and the error for a loss that is not finite."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...errors import UserError
from ...models.encoding import LogpColumn
from ..distributed import world_size
from ..loss import duality_gap
from ..micro_batch import Contrast, likelihoods_of
from ..model.hooks import AlignmentOutput
from ..objective import LIKELIHOOD
from ..step import SYNTHETIC, Step
from .meter import Meter

DIRECTION_TERMS = (("forward", LogpColumn.Y_GIVEN_X), ("reverse", LogpColumn.X_GIVEN_Y))
NLL_METRICS = (("nll_y_given_x", LogpColumn.Y_GIVEN_X), ("nll_x_given_y", LogpColumn.X_GIVEN_Y))


class Monitor:
    """Metrics of the steps since the last log line, over all processes, and the token rate.

    Args:
        columns: likelihood columns that are trained, as in encoding.LogpColumn.
        duality_gap: whether the duality gap is trained.
    """

    def __init__(self, columns: tuple[int, ...], *, duality_gap: bool) -> None:
        self._columns, self._duality_gap = columns, duality_gap
        self._meter = Meter()
        self._tokens: Tensor | int = 0  # that passed through the model, both directions
        self._last: tuple[int, float] | None = None  # tokens and time of the last log line, or of the first step

    @property
    def num_tokens(self) -> int:
        """Number of tokens that passed through the model since the start of the run."""
        return int(self._tokens)

    def resume(self, num_tokens: int) -> None:
        """Continue the count of a checkpoint."""
        self._tokens, self._last = num_tokens, None

    def stop_clock(self) -> None:
        """Stop the clock of the token rate until the next step, so that set-up does not count."""
        self._last = None

    def begin_step(self) -> None:
        """Start the clock of the token rate, unless it runs."""
        if self._last is None:
            self._last = (self.num_tokens, time.monotonic())

    def measure_loss(self, step: Step, contributions: dict[str, Tensor], output: AlignmentOutput) -> None:
        """Add a micro-batch's contributions to the loss as loss_<term>; those of a log line sum to its `loss`."""
        per_step = float(step.position == 0)  # a sum over the micro-batches of a step, a mean over steps
        for name, value in contributions.items():
            if name != LIKELIHOOD:
                self._meter.add(f"loss_{name}", value, per_step)
                continue
            assert output.lm_loss_columns is not None
            for term, column in DIRECTION_TERMS:
                if column in self._columns:
                    self._meter.add(f"loss_{term}", output.lm_loss_columns[column] * world_size(), per_step)

    def measure(
        self, step: Step, pairs: dict[str, Tensor], logp: Tensor, token_loss_weights: Tensor, synthetic_weight: Tensor
    ) -> None:
        """Add a micro-batch's likelihoods: logp [N, 4], and their factors in the loss, token_loss_weights [N, 4]."""
        logp, known = logp.detach(), token_loss_weights > 0  # the log p of a token of weight 0 is not computed
        nll, tokens = -(logp * known).sum(0), (pairs["tokens"] * known).sum(0)
        for name, column in NLL_METRICS:
            if column in self._columns:
                self._meter.add(name, nll[column], tokens[column])
        if self._duality_gap:
            gaps = duality_gap(likelihoods_of(logp, pairs["tokens"]))
            self._meter.add("duality_gap", gaps.sum(), len(gaps))
        if step.position == 0:  # α is one number for a step, and the loss a mean over steps
            # every process must add the same names, so the weight is 0 without synthetic pairs, and there is no `if`
            present = (step.tokens[SYNTHETIC].sum() > 0).float()
            self._meter.add("synthetic_weight", synthetic_weight * present, present)
            self._tokens = self._tokens + step.model_tokens

    def measure_contrast(self, contrast: Contrast) -> None:
        """Add unweighted embedding terms and their metrics."""
        for name, value in contrast.values.items():
            self._meter.add(name, value * contrast.pairs, contrast.pairs)

    def measure_gradients(
        self, step: Step, contributions: dict[str, Tensor], states: Tensor, pairs: dict[str, Tensor]
    ) -> None:
        """Add the norm of each contribution's gradient with respect to the backbone's last hidden states.

        Called once per log line: it runs the backward of the heads a second time.
        """
        for name, value in contributions.items():
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, states, retain_graph=True, allow_unused=True)
            gradient = torch.zeros_like(states) if gradient is None else gradient / world_size()
            if name != LIKELIHOOD:
                step.add_square(f"grad_norm_{name}", gradient)
                continue
            columns = pairs["segments"] % 4
            for term, column in DIRECTION_TERMS:
                if column in self._columns:
                    step.add_square(f"grad_norm_{term}", gradient[0, pairs["rows"][columns == column]])
        if step.is_last:
            for name, norm in step.norms().items():
                self._meter.add(name, norm)

    def read(self) -> dict[str, float]:
        """Return the metrics of a log line and reset; empty if no step was trained since the last one."""
        metrics = self._meter.read()
        if not metrics:
            return {}
        assert self._last is not None
        (before, when), (tokens, now) = self._last, (self.num_tokens, time.monotonic())
        self._last = (tokens, now)
        return metrics | {"num_tokens": tokens, "tokens_per_second": (tokens - before) / max(now - when, 1e-9)}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude an evaluation: its log lines have no training metrics, and the clock of the token rate stops."""
        meter, self._meter = self._meter, Meter()
        last, began = self._last, time.monotonic()
        try:
            yield
        finally:
            self._meter = meter
            self._last = None if last is None else (last[0], last[1] + time.monotonic() - began)


def check_finite(
    loss: Tensor, contributions: dict[str, Tensor], output: AlignmentOutput, pairs: dict[str, Tensor], step: int
) -> None:
    """Raise UserError, naming step, terms and rows, if the loss is not finite."""
    if bool(torch.isfinite(loss.detach())):
        return
    names = [name for name, value in contributions.items() if not bool(torch.isfinite(value.detach()))]
    finite = torch.ones_like(pairs["row"], dtype=torch.bool)
    for tensor in (output.logp, output.embed_x, output.embed_y):
        if tensor is not None:
            finite &= tensor.detach().isfinite().all(1)
    rows = (pairs["row"] if bool(finite.all()) else pairs["row"][~finite]).tolist()
    raise UserError(
        f"step {step}: the loss is {float(loss.detach())}; not finite: {', '.join(names) or 'the sum of all terms'}, "
        f"in rows {', '.join(map(str, rows))} of the data set. Check these rows. If they are valid, lower the learning "
        "rate or the weight of that term, or train in bfloat16 or float32 instead of float16."
    )
