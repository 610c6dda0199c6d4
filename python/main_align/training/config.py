"""AlignmentArguments, MutualAlignmentConfig: the settings of training, alone or joined with SFTConfig."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from trl import SFTConfig

from ..checks import check_types
from ..errors import UserError
from ..models.devices import has_bfloat16
from ..models.encoding import LogpColumn
from .synthetic_weight import SCHEDULES, SyntheticWeight
from .terms import EMBEDDING_TERMS, AlignmentTerms

DIRECTIONS = ("both", "forward", "reverse")
OVER_LENGTH = ("error", "drop", "truncate")


@dataclass
class AlignmentArguments(AlignmentTerms):
    """Settings of AlignmentMixin, in addition to the trainer's own arguments."""

    directions: str = field(
        default="both",
        metadata={
            "help": "Likelihoods trained: both, forward (p(y|x): supervised fine-tuning plus the embedding terms) or "
            "reverse (p(x|y)).",
            "choices": list(DIRECTIONS),
        },
    )
    projection_dim: int = field(
        default=256,
        metadata={"help": "Width of the projection heads of the embedding terms. 0 compares the pooled states."},
    )
    contrast_across_accumulation: bool = field(
        default=True,
        metadata={
            "help": "With gradient accumulation, contrast the pairs of all micro-batches of a step with each other: "
            "exact, at the cost of a second forward. False contrasts each micro-batch by itself."
        },
    )
    synthetic_weight_schedule: str = field(
        default="loss_ratio",
        metadata={
            "help": "Schedule of the weight of pairs whose column `synthetic` is true: loss_ratio, constant or linear.",
            "choices": list(SCHEDULES),
        },
    )
    synthetic_weight: float = field(
        default=0.5,
        metadata={"help": "Weight of synthetic pairs: constant, last (linear) or first value (loss_ratio)."},
    )
    over_length: str = field(
        default="error",
        metadata={
            "help": "Treatment of pairs over max_length: error, drop, or truncate both sides.",
            "choices": list(OVER_LENGTH),
        },
    )

    @property
    def uses_embeddings(self) -> bool:
        """True if an embedding term has a weight above 0."""
        return bool(self.active(EMBEDDING_TERMS))

    @property
    def columns(self) -> tuple[int, ...]:
        """Likelihood columns that are trained."""
        return {
            "both": (LogpColumn.Y_GIVEN_X, LogpColumn.X_GIVEN_Y),
            "forward": (LogpColumn.Y_GIVEN_X,),
            "reverse": (LogpColumn.X_GIVEN_Y,),
        }[self.directions]

    def check(self) -> None:
        """Raise UserError, naming the setting, if a value is out of range or contradicts another."""
        check_types(AlignmentArguments, vars(self))
        self.check_terms()
        SyntheticWeight(self.synthetic_weight_schedule, self.synthetic_weight)
        for name, known in (("directions", DIRECTIONS), ("over_length", OVER_LENGTH)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.duality_gap_weight > 0 and self.directions != "both":
            raise UserError(
                f"the duality gap needs directions='both', got {self.directions!r}: set duality_gap_weight=0"
            )
        if self.projection_dim < 0:
            raise UserError(f"projection_dim must not be negative, got {self.projection_dim}")
        trained = {"both": ("forward", "reverse"), "forward": ("forward",), "reverse": ("reverse",)}[self.directions]
        if not self.active((*trained, *EMBEDDING_TERMS, "duality_gap")):
            raise UserError(f"with directions={self.directions!r} all trained terms have weight 0: set one above 0")


@dataclass
class MutualAlignmentConfig(AlignmentArguments, SFTConfig):
    """SFTConfig with the settings of mutual alignment.

    The default of `bf16` is True if the device has bfloat16 instructions; SFTConfig's is True everywhere.
    """

    def __post_init__(self) -> None:
        # without it, the processes of torchrun on a machine without a GPU do not find each other
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None and self.use_cpu:
            self.bf16 = not self.fp16 and has_bfloat16(torch.device("cpu"))
        super().__post_init__()
