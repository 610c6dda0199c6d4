"""Score pairs in pipelines of three libraries: Hugging Face datasets, Ray Data and datatrove.

    python examples/score_pipeline.py datasets examples/pairs.jsonl scored.jsonl
    python examples/score_pipeline.py ray examples/pairs.jsonl scored/
    python examples/score_pipeline.py datatrove examples/pairs.jsonl scored/

Each makes a bank of reference pairs first, so that the scores do not depend on how the pipeline cuts its batches. With
a data set of millions, `main-align score` does all of this, and resumes: see docs/scale.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from main_align import Bank, Scorer, read_pairs
from main_align.ray import ScoreStage


def make_bank(source: str, model: str) -> str:
    """Measure the pairs, and save a bank of them beside the output."""
    Bank.of(Scorer(model).measure(read_pairs(source))).save("bank.safetensors")
    return str(Path("bank.safetensors").absolute())


def with_datasets(source: str, out: str, model: str) -> None:
    """Map batches of Arrow tables."""
    from datasets import Dataset

    stage = ScoreStage(model, bank=make_bank(source, model))
    dataset = Dataset.from_json(source).with_format("arrow")
    dataset.map(stage, batched=True, batch_size=256).with_format(None).to_json(out)


def with_ray(source: str, out: str, model: str) -> None:
    """Map batches in a pool of actors, each with its own model."""
    import ray

    ray.data.read_json(source, lines=True).map_batches(
        ScoreStage,
        fn_constructor_kwargs={"model": model, "bank": make_bank(source, model)},
        batch_format="pyarrow",
        batch_size=256,
        compute=ray.data.ActorPoolStrategy(size=1),
    ).write_json(out)


def with_datatrove(source: str, out: str, model: str) -> None:
    """Put a step between a reader and a writer."""
    import pyarrow as pa
    from datatrove.data import Document, DocumentsPipeline
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    class AddScores(PipelineStep):
        """Add the scores to the metadata of each document; its pair is `instruction` (metadata) and `text`."""

        name, type = "main-align scores", "scores"

        def __init__(self, model: str, bank: str) -> None:
            super().__init__()
            self.model, self.bank = model, bank

        def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
            stage = ScoreStage(self.model, bank=self.bank)
            for documents in batched(data, 256):
                pairs = [{"instruction": one.metadata["instruction"], "response": one.text} for one in documents]
                rows = stage(pa.Table.from_pylist(pairs)).drop(["instruction", "response"]).to_pylist()
                for document, row in zip(documents, rows, strict=True):
                    document.metadata.update(row)
                    yield document

    def batched(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
        batch = []
        for document in documents:
            batch.append(document)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    path = Path(source).absolute()
    reader = JsonlReader(str(path.parent), glob_pattern=path.name, text_key="response")
    writer = JsonlWriter(out, compression=None)
    LocalPipelineExecutor([reader, AddScores(model, make_bank(source, model)), writer], logging_dir=f"{out}/logs").run()


PIPELINES: dict[str, Any] = {"datasets": with_datasets, "ray": with_ray, "datatrove": with_datatrove}

if __name__ == "__main__":
    library, source, out, *model = sys.argv[1:]
    PIPELINES[library](source, out, *model or ["smollm2"])
