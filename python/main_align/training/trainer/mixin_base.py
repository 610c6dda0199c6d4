"""MixinBase: the attributes that the parts of AlignmentMixin share, for type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from transformers import Trainer

from ...models.projection_heads import AlignmentHead
from ..config import AlignmentArguments
from ..loss import MutualAlignmentLoss
from ..metrics.evaluation import Evaluation
from ..metrics.monitor import Monitor
from ..synthetic_weight import SyntheticWeight

if TYPE_CHECKING:  # at run time the trainer's class comes after the mixin
    _Trainer = Trainer
else:
    _Trainer = object


class MixinBase(_Trainer):
    """Base of the mixins; AlignmentMixin sets the attributes."""

    alignment: AlignmentArguments
    _loss: MutualAlignmentLoss
    _monitor: Monitor
    _evaluation: Evaluation | None
    _head: AlignmentHead | None
    _synthetic_weight: SyntheticWeight

    def _current_synthetic_weight(self) -> Tensor:
        """Return α at the current step, a float32 scalar on the trainer's device."""
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return self._synthetic_weight.at(progress, self.args.device)
