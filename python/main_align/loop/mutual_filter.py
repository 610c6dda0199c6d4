"""run_filter_stage, describe_filter and MutualScorer: score the augmented pairs with both models and keep the best.

Each model scores what it was trained for: log p(y|x) and log p(y) come from the forward model, log p(x|y) and log p(x)
from the reverse model. Every difference is therefore taken within one model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..filtering.filter import FilterResult, filter_scores, find_input
from ..filtering.join import Join, write_kept
from ..filtering.rules import best_first
from ..models.encoding import LogpColumn
from ..models.forward import Forward, Submitted
from ..scoring.batching import MicroBatch, SortWindow
from ..scoring.job import score_file
from ..scoring.results import MicroBatchResult
from ..scoring.scorer import Scorer
from .config import Direction
from .context import LoopContext
from .generate_stage import PAIRS
from .model_pair import ScoringModels
from .pairs import DROPPED, excerpt
from .plan import Stage

X_SIDE = [LogpColumn.X_GIVEN_Y, LogpColumn.X]
SCORES, KEPT = "scores.parquet", "kept.jsonl"
EXAMPLES = 2  # kept rows, and dropped rows, that the log shows


def run_filter_stage(context: LoopContext, stage: Stage, work_dir: Path) -> dict[str, Any]:
    """Score the augmented pairs and keep the best; only the main process works.

    Args:
        context: state of the run.
        stage: the stage with the work "filter".
        work_dir: folder of the stage; gets scores.parquet, kept.jsonl and dropped.jsonl.

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
    join = Join(*find_input(work_dir / SCORES, generated, otherwise=""), work_dir / SCORES)
    write_kept(join, work_dir / DROPPED, ~filtered.kept)
    for line in describe_filter(filtered, join):
        context.log(f"{stage.name}: {line}")
    return {
        "counts": dict(manifest["counts"]),
        "rows": filtered.table.rows,
        "kept": int(filtered.kept.sum()),
        "filter_by": filtered.by,
        "threshold": filtered.threshold,
        "seconds": round(time.monotonic() - start, 3),
        "tokens_per_second": manifest["throughput"]["tokens_per_second"],
    }


def describe_filter(result: FilterResult, join: Join) -> list[str]:
    """Return the lines of the log about a filter: its counts, the best kept rows and the worst dropped ones.

    Args:
        result: the result of the filter.
        join: the pairs and their scores.
    """
    assert result.by is not None
    values, kept, rows = result.table.columns[result.by], int(result.kept.sum()), result.table.rows
    unscored = sum(result.unscored.values())
    sign = "<=" if result.lower_is_better else ">="
    lines = [f"kept {kept:,} of {rows:,} pairs by {result.by} {sign} {result.threshold:.4g}"]
    lines.append(f"dropped {rows - kept - unscored:,} pairs beyond it and {unscored:,} without a score")
    scored = np.flatnonzero(~np.isnan(values))
    ranked = scored[best_first(values[scored], bool(result.lower_is_better))]
    shown = dict.fromkeys(ranked[result.kept[ranked]][:EXAMPLES].tolist(), "kept")
    shown |= dict.fromkeys(ranked[~result.kept[ranked]][::-1][:EXAMPLES].tolist(), "dropped")
    texts = {row: pair for row, (pair, _, _) in enumerate(join.with_pairs()) if row in shown}
    for row, verdict in shown.items():
        pair = texts[row]
        texts_of = f"{excerpt(pair.instruction)} -> {excerpt(pair.response)}"
        lines.append(f"{verdict} {pair.id}, {result.by} {values[row]:.4g}: {texts_of}")
    return lines


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
        self.passes: dict[Direction, Forward] = {"forward": self.forward, "reverse": Forward(models.reverse.model)}
        self.fingerprint |= {"reverse_model": models.reverse.name, "reverse_digest": models.reverse.digest}

    def _submit(self, window: SortWindow, batch: MicroBatch) -> Sequence[Submitted]:
        passes: list[Submitted] = []
        for direction, forward in self.passes.items():
            self.activate(direction)
            self.forward = forward
            passes += super()._submit(window, batch)
        self.forward = self.passes["forward"]
        return passes if len(passes) == len(self.passes) else []

    def _read(self, window: SortWindow, rows: tuple[int, ...], *passes: Submitted) -> MicroBatchResult:
        result, reverse = (super(MutualScorer, self)._read(window, rows, one) for one in passes)
        result.logp[:, X_SIDE] = reverse.logp[:, X_SIDE]
        result.novel[:, 1] = reverse.novel[:, 1]
        for row in reverse.status:
            if row not in result.status:
                result.fail(rows.index(row), reverse.status[row], reverse.reason[row])
        return result
