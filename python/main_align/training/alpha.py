"""How much pairs that a model wrote count beside the seeds: L = alpha L(synthetic) + (1 - alpha) L(seed)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError

SCHEDULES = ("loss_ratio", "constant", "linear")
MOMENTUM = 0.9  # of the running means of both losses


class Alpha:
    """The weight of synthetic pairs, a float32 scalar tensor that never leaves its device.

    ===============  ==============================================================================================
    ``loss_ratio``   L_seed / (L_seed + L_synthetic) on detached running means: synthetic pairs count less while they
                     fit worse; `value` until both have been seen
    ``constant``     `value`
    ``linear``       from 0 to `value` over the run
    ===============  ==============================================================================================
    """

    def __init__(self, schedule: str, value: float) -> None:
        if schedule not in SCHEDULES:
            raise UserError(f"synthetic_weight_schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if not 0 <= value <= 1:
            raise UserError(f"synthetic_weight must be from 0 to 1, got {value}")
        if schedule == "loss_ratio" and value in (0, 1):
            raise UserError(
                f"synthetic_weight must be above 0 and below 1 with loss_ratio, which measures both kinds, got {value}"
            )
        self.schedule, self.start = schedule, value
        self.means: Tensor | None = None  # [2] of the seeds and the synthetic pairs, NaN until seen

    def now(self, progress: float, device: torch.device) -> Tensor:
        """At `progress`, the share of the run that is done."""
        value = torch.tensor(self.start, dtype=torch.float32, device=device)
        if self.schedule == "linear":
            return value * min(max(progress, 0.0), 1.0)
        if self.schedule == "constant" or self.means is None:
            return value
        seed, synthetic = self.means.to(device)
        ratio = seed / (seed + synthetic)
        return torch.where(ratio.isfinite(), ratio, value)

    def observe(self, losses: Tensor) -> None:
        """Takes in [2] mean losses of one update, nats per token; NaN for a kind that it did not have."""
        losses = losses.detach().float()
        if self.means is None:
            self.means = torch.full_like(losses, torch.nan)
        means = self.means.to(losses.device)  # a checkpoint is read on the CPU
        moved = MOMENTUM * means + (1 - MOMENTUM) * losses
        moved = torch.where(means.isnan(), losses, moved)
        self.means = torch.where(losses.isnan(), means, moved)
