"""Fine-tuning with mutual alignment: a loss module for any loop, a mixin for trainers, and a trainer.

from main_align.training import MutualAlignmentConfig, MutualAlignmentTrainer
"""

from .config import AlignmentArguments, MutualAlignmentConfig
from .loss import Likelihoods, MutualAlignmentLoss
from .terms import AlignmentTerms
from .trainer.mixin import AlignmentMixin
from .trainer.trainer import MutualAlignmentTrainer

__all__ = [
    "AlignmentArguments",
    "AlignmentMixin",
    "AlignmentTerms",
    "Likelihoods",
    "MutualAlignmentConfig",
    "MutualAlignmentLoss",
    "MutualAlignmentTrainer",
]
