"""SyntheticWeight: the weight α of synthetic pairs in L = α L(synthetic) + (1 - α) L(seed)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError

SCHEDULES = ("loss_ratio", "constant", "linear")
MOMENTUM = 0.9  # of the running means of both losses


class SyntheticWeight:
    """The weight of synthetic pairs: a float32 scalar tensor, computed on the device without synchronising.

    ===============  ==============================================================================================
    ``loss_ratio``   L_seed / (L_seed + L_synthetic) on detached running means: synthetic pairs weigh less while their
                     loss is higher; `value` until both kinds have been seen
    ``constant``     `value`
    ``linear``       from 0 to `value` over the run
    ===============  ==============================================================================================

    Args:
        schedule: one of SCHEDULES.
        value: float in [0, 1].

    Raises:
        UserError: if an argument is out of range.
    """

    def __init__(self, schedule: str, value: float) -> None:
        if schedule not in SCHEDULES:
            raise UserError(f"synthetic_weight_schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if not 0 <= value <= 1:
            raise UserError(f"synthetic_weight must be from 0 to 1, got {value}")
        if schedule == "loss_ratio" and value in (0, 1):
            raise UserError(
                f"synthetic_weight must be above 0 and below 1 with loss_ratio, got {value}: at 0 or 1 one of the two "
                "losses is not measured. Use the constant schedule"
            )
        self.schedule, self.value = schedule, value
        self.means: Tensor | None = None  # [2] of the seed and the synthetic pairs, NaN until seen

    def at(self, progress: float, device: torch.device) -> Tensor:
        """Return the weight at `progress`, the completed fraction of the run."""
        value = torch.tensor(self.value, dtype=torch.float32, device=device)
        if self.schedule == "linear":
            return value * min(max(progress, 0.0), 1.0)
        if self.schedule == "constant" or self.means is None:
            return value
        seed, synthetic = self.means.to(device)
        ratio = seed / (seed + synthetic)
        return torch.where(ratio.isfinite(), ratio, value)

    def observe(self, losses: Tensor) -> None:
        """Update the running means with a step's losses, [2] in nats per token; NaN for a kind without pairs."""
        losses = losses.detach().float()
        if self.means is None:
            self.means = torch.full_like(losses, torch.nan)
        means = self.means.to(losses.device)  # a checkpoint is read on the CPU
        moved = MOMENTUM * means + (1 - MOMENTUM) * losses
        moved = torch.where(means.isnan(), losses, moved)
        self.means = torch.where(losses.isnan(), means, moved)
