"""The mutual filter: both models score what was augmented, and the best pairs are kept.

Each model is asked for what it was trained for: log p(y|x) and log p(y) come from the forward model,
log p(x|y) and log p(x) from the reverse model, so every difference is taken within one model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..filtering.filter import FilterResult, filter_scores
from ..models.encoding import LogpColumn
from ..models.forward import Forward
from ..models.load import LoadedModel
from ..progress import (
    Progress,
)
from ..scoring.batching import SortWindow
from ..scoring.job import (
    score_file,
)
from ..scoring.results import MicroBatchResult
from ..scoring.scorer import Scorer
from .config import Direction

X_SIDE = [LogpColumn.X_GIVEN_Y, LogpColumn.X]
SCORES, KEPT = "scores.parquet", "kept.jsonl"


class MutualScorer(Scorer):
    """A Scorer with a model for each direction; embeddings are the forward model's.

    Args:
        forward, reverse: the two models, or one model twice.
        use: called with "forward" or "reverse" before that one's pass (switches adapters).
        options: those of Scorer.

    The duality gap stays what it is in `scores.COLUMNS`, but between these four numbers: of two models it says how
    far they are from being two views of one joint distribution.
    """

    def __init__(
        self, forward: LoadedModel, reverse: LoadedModel, use: Callable[[Direction], Any], **options: Any
    ) -> None:
        super().__init__(forward, **options)
        self.use, self.passes = use, {"forward": self.forward, "reverse": Forward(reverse.model)}
        self.fingerprint |= {"reverse_model": reverse.name, "reverse_digest": reverse.digest}

    def _run(self, window: SortWindow, rows: tuple[int, ...]) -> MicroBatchResult:
        both: dict[Direction, MicroBatchResult] = {}
        for direction in ("forward", "reverse"):
            self.use(direction)
            self.forward = self.passes[direction]
            both[direction] = super()._run(window, rows)
        self.forward = self.passes["forward"]
        result, other = both["forward"], both["reverse"]
        result.logp[:, X_SIDE] = other.logp[:, X_SIDE]
        for row in other.status:
            if row not in result.status:
                result.fail(rows.index(row), other.status[row], other.reason[row])
        return result


def score_and_keep(
    scorer: Scorer, written: Path, folder: Path, criterion: str, keep: float, say: Callable[[Progress], None]
) -> tuple[dict[str, Any], FilterResult]:
    """Score the file `written`, and write the best share of its pairs; both files go to `folder`."""
    manifest = score_file(scorer, written, folder / SCORES, progress=say)
    return manifest, filter_scores(folder / SCORES, folder / KEPT, by=criterion, keep=keep)
