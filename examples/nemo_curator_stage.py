"""A NeMo Curator stage that adds scores to batches of documents.

    main-align score pairs.jsonl -o scored/                     # leaves a bank in scored/bank.safetensors
    python examples/nemo_curator_stage.py pairs.jsonl out/ scored/bank.safetensors

Every worker loads the model once, in `setup`. For a GPU per worker:
`ScorePairs(...).with_(resources=Resources(cpus=1.0, gpus=1.0))`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from main_align.ray import ScoreStage
from nemo_curator.backends.base import WorkerMetadata
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.stages.text.io.reader import JsonlReader
from nemo_curator.stages.text.io.writer import JsonlWriter
from nemo_curator.tasks import DocumentBatch


@dataclass
class ScorePairs(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Add a column for every score, and the status and its reason.

    Args:
        bank: path of a bank of the model, under which every worker finds it.
        model: as for `main_align.Scorer`.
        name: name of the stage.
        resources: what a worker needs. Default: one CPU.
    """

    bank: str
    model: str = "smollm2"
    name: str = "main_align_scores"
    resources: Resources = field(default_factory=lambda: Resources(cpus=1.0))

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["mutual", "pmi_forward", "pmi_reverse", "semantic", "structural", "status", "reason"]

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        self.stage = ScoreStage(self.model, bank=self.bank)

    def process(self, task: DocumentBatch) -> DocumentBatch:
        table = self.stage(task.to_pyarrow())
        return DocumentBatch(task.dataset_name, table, _metadata=task._metadata, _stage_perf=task._stage_perf)


def run(source: str, out: str, bank: str, model: str = "smollm2") -> None:
    """Score the documents of .jsonl files."""
    stages = [JsonlReader(source), ScorePairs(bank, model), JsonlWriter(out)]
    Pipeline("scores", stages=stages).run(RayDataExecutor())


if __name__ == "__main__":
    run(*sys.argv[1:])
