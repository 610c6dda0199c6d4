"""Score instruction-response pairs by mutual alignment, filter them, and train on both directions.

    from main_align import Scorer
    rows = Scorer("smollm2").score([{"instruction": "Name a prime.", "response": "Seven."}])

Names are imported on first use, so `import main_align` is fast.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, whose import takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from .data.fields import Fields
    from .data.pairs import Pair, Turn
    from .data.read import read_pairs
    from .errors import UserError
    from .evaluation.answer import AnswerSettings, answer_file
    from .evaluation.evaluator import AlignmentCallback, AlignmentEvaluator
    from .filtering.filter import FilterResult, filter_scores
    from .loop import LoopConfig, MutualAlignmentLoop
    from .models.projection_heads import AlignmentHead
    from .progress import Progress
    from .scoring.bank import Bank
    from .scoring.columns import COLUMNS
    from .scoring.job import score_file
    from .scoring.measured import Measured
    from .scoring.merge import merge_scores
    from .scoring.scorer import Scorer
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
    "AlignmentCallback",
    "AlignmentEvaluator",
    "AlignmentHead",
    "AlignmentMixin",
    "AlignmentTerms",
    "AnswerSettings",
    "Bank",
    "Fields",
    "FilterResult",
    "Likelihoods",
    "LoopConfig",
    "Measured",
    "MutualAlignmentConfig",
    "MutualAlignmentLoop",
    "MutualAlignmentLoss",
    "MutualAlignmentTrainer",
    "Pair",
    "Progress",
    "Scorer",
    "Turn",
    "UserError",
    "answer_file",
    "filter_scores",
    "merge_scores",
    "read_pairs",
    "score_file",
]

_MODULES = {
    "COLUMNS": "scoring.columns",
    "AlignmentArguments": "training",
    "AlignmentCallback": "evaluation.evaluator",
    "AlignmentEvaluator": "evaluation.evaluator",
    "AlignmentHead": "models.projection_heads",
    "AlignmentMixin": "training",
    "AlignmentTerms": "training",
    "AnswerSettings": "evaluation.answer",
    "Bank": "scoring.bank",
    "Fields": "data.fields",
    "FilterResult": "filtering.filter",
    "Likelihoods": "training",
    "LoopConfig": "loop",
    "Measured": "scoring.measured",
    "MutualAlignmentConfig": "training",
    "MutualAlignmentLoop": "loop",
    "MutualAlignmentLoss": "training",
    "MutualAlignmentTrainer": "training",
    "Pair": "data.pairs",
    "Progress": "progress",
    "Scorer": "scoring.scorer",
    "Turn": "data.pairs",
    "UserError": "errors",
    "answer_file": "evaluation.answer",
    "filter_scores": "filtering.filter",
    "merge_scores": "scoring.merge",
    "read_pairs": "data.read",
    "score_file": "scoring.job",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
