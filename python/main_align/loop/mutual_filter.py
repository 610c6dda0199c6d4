"""run_filter_stage and MutualScorer: score the augmented pairs with both models and keep the best.

Each model scores what it was trained for: log p(y|x) and log p(y) come from the forward model, log p(x|y) and log p(x)
from the reverse model. Every difference is therefore taken within one model.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..filtering.filter import filter_scores
from ..models.encoding import LogpColumn
from ..models.forward import Forward
from ..scoring.batching import SortWindow
from ..scoring.job import score_file
from ..scoring.results import MicroBatchResult
from ..scoring.scorer import Scorer
from .config import Direction
from .context import LoopContext
from .generate_stage import PAIRS
from .model_pair import ScoringModels
from .plan import Stage

X_SIDE = [LogpColumn.X_GIVEN_Y, LogpColumn.X]
SCORES, KEPT = "scores.parquet", "kept.jsonl"


def run_filter_stage(context: LoopContext, stage: Stage, work_dir: Path) -> dict[str, Any]:
    """Score the augmented pairs and keep the best; only the main process works.

    Args:
        context: state of the run.
        stage: the stage with the work "filter".
        work_dir: folder of the stage; gets scores.parquet and kept.jsonl.

    Returns:
        Entries of the stage's manifest; none outside the main process.
    """
    if not context.processes.is_main:
        return {}
    assert stage.pairs_stage is not None
    config, models = context.config, context.models
    # every pair fits: a prompt and max_new_tokens are at most as long as the context
    scorer = MutualScorer(models.load_for_scoring(stage), max_length=models.info["forward"].context, seed=config.seed)
    start = time.monotonic()
    generated = context.run_dir.stage_dir(stage.pairs_stage) / PAIRS
    manifest = score_file(scorer, generated, work_dir / SCORES, on_progress=context.on_progress)
    filtered = filter_scores(work_dir / SCORES, work_dir / KEPT, by=config.filter_by, keep=config.keep)
    kept = int(filtered.kept.sum())
    context.log(f"{stage.name}: kept {kept:,} of {filtered.table.rows:,} pairs by {filtered.by}")
    return {
        "counts": dict(manifest["counts"]),
        "kept": kept,
        "filter_by": filtered.by,
        "threshold": filtered.threshold,
        "seconds": round(time.monotonic() - start, 3),
        "tokens_per_second": manifest["throughput"]["tokens_per_second"],
    }


class MutualScorer(Scorer):
    """Score with one model per direction; the embeddings are the forward model's.

    The duality gap compares the four log-likelihoods as with one model. With two models it measures how far they are
    from two views of one joint distribution.

    Args:
        models: both models.
        options: options of `Scorer`.
    """

    def __init__(self, models: ScoringModels, **options: Any) -> None:
        super().__init__(models.forward, **options)
        self.activate = models.activate
        self.passes = {"forward": self.forward, "reverse": Forward(models.reverse.model)}
        self.fingerprint |= {"reverse_model": models.reverse.name, "reverse_digest": models.reverse.digest}

    def _run(self, window: SortWindow, rows: tuple[int, ...]) -> MicroBatchResult:
        results: dict[Direction, MicroBatchResult] = {}
        for direction in ("forward", "reverse"):
            self.activate(direction)
            self.forward = self.passes[direction]
            results[direction] = super()._run(window, rows)
        self.forward = self.passes["forward"]
        result, reverse = results["forward"], results["reverse"]
        result.logp[:, X_SIDE] = reverse.logp[:, X_SIDE]
        result.novel[:, 1] = reverse.novel[:, 1]
        for row in reverse.status:
            if row not in result.status:
                result.fail(rows.index(row), reverse.status[row], reverse.reason[row])
        return result
