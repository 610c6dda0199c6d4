"""Scores instruction-response pairs by mutual alignment; the Hugging Face layer of main-kernels.

    from main_align import Scorer
    rows = Scorer("smollm2").score([{"instruction": "Name a prime.", "response": "Seven."}])

Names are imported on first use, so `import main_align` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import UserError
    from .filtering import Filtered, filter_scores
    from .forms import Fields
    from .heads import AlignmentHead
    from .job import Progress, score_file
    from .loop import LoopConfig, MutualAlignmentLoop
    from .reading import read_pairs
    from .records import Pair, Turn
    from .scorer import Scorer
    from .scores import COLUMNS
    from .training import (
        AlignmentArguments,
        AlignmentMixin,
        AlignmentTerms,
        Likelihoods,
        MutualAlignmentConfig,
        MutualAlignmentLoss,
        MutualAlignmentTrainer,
    )

__all__ = [
    "COLUMNS",
    "AlignmentArguments",
    "AlignmentHead",
    "AlignmentMixin",
    "AlignmentTerms",
    "Fields",
    "Filtered",
    "Likelihoods",
    "LoopConfig",
    "MutualAlignmentConfig",
    "MutualAlignmentLoop",
    "MutualAlignmentLoss",
    "MutualAlignmentTrainer",
    "Pair",
    "Progress",
    "Scorer",
    "Turn",
    "UserError",
    "filter_scores",
    "read_pairs",
    "score_file",
]

_HOMES = {
    "COLUMNS": "scores",
    "AlignmentArguments": "training",
    "AlignmentHead": "heads",
    "AlignmentMixin": "training",
    "AlignmentTerms": "training",
    "Fields": "forms",
    "Filtered": "filtering",
    "Likelihoods": "training",
    "LoopConfig": "loop",
    "MutualAlignmentConfig": "training",
    "MutualAlignmentLoop": "loop",
    "MutualAlignmentLoss": "training",
    "MutualAlignmentTrainer": "training",
    "Pair": "records",
    "Progress": "job",
    "Scorer": "scorer",
    "Turn": "records",
    "UserError": "errors",
    "filter_scores": "filtering",
    "read_pairs": "reading",
    "score_file": "job",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
