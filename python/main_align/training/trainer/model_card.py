"""extend_card: add method, data, terms with their weights, and held-out scores to a model card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import IterableDataset
from huggingface_hub import EvalResult, ModelCard
from transformers import TrainerState

from ..config import AlignmentArguments
from ..dataset.packing import PackedPairs

PAPER = {"title": "Mutual Alignment Is Necessary for instruction tuning", "id": "2504.12913"}
_TITLE = "## Mutual alignment"
_HELD_OUT = "held-out"  # dataset type of the scores in the metadata
_SECTION = re.compile(rf"\n*{_TITLE}\n.*?(?=\n## |\Z)", re.DOTALL)
_TERMS = {
    "forward": "-log p(y\\|x), nats per token",
    "reverse": "-log p(x\\|y), nats per token",
    "duality_gap": "the duality gap, nats per token",
    "semantic": "symmetric InfoNCE of the pooled states of x and y",
    "intentional": "minus a bound on the mutual information of x and y ({estimator})",
    "structural": "cyclic consistency of the two similarity matrices",
}
_SCORES = {
    "mutual_novel": "as mutual, without copied tokens; higher is better",
    "mutual": "mean of both log-ratios, nats per √token; higher is better",
    "nll_y_given_x": "-log p(y\\|x), nats per token; lower is better",
    "nll_x_given_y": "-log p(x\\|y), nats per token; lower is better",
    "retrieval": "fraction of instructions whose own response is the nearest; higher is better",
    "accuracy_x_to_y": "fraction of instructions whose own response ranks first; higher is better",
    "accuracy_y_to_x": "fraction of responses whose own instruction ranks first; higher is better",
    "mi": "estimate of the mutual information, nats; higher is better",
}
"""metrics that an evaluation or AlignmentCallback logs as `eval_NAME` or `eval_DATA_NAME`; longer names come first"""


class HeldOutScore(NamedTuple):
    """One score of one held-out data set."""

    data: str
    name: str
    value: float


def extend_card(card: Path, alignment: AlignmentArguments, pairs: Any, state: TrainerState) -> None:
    """Write the section and the metadata; a section that the card has already is replaced.

    Args:
        card: README.md of the model.
        alignment: settings of the training.
        pairs: the training data, as Preparation returns it.
        state: the trainer's state, whose log has the held-out scores.
    """
    step, scores = held_out_scores(state)
    content = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    section = [*_method(alignment, pairs), *_scores(state, step, scores)]
    content.text = _SECTION.sub("", content.text).rstrip() + "\n\n" + "\n".join(section) + "\n"
    if scores:
        data: Any = content.data  # ModelCardData
        data.model_name = data.model_name or card.absolute().parent.name
        ours = [
            EvalResult(
                task_type="text-generation",
                dataset_type=_HELD_OUT,
                dataset_config=each.data,  # huggingface_hub joins results whose type and config are equal
                dataset_name=each.data,
                metric_type=each.name,
                metric_name=each.name,
                metric_value=each.value,
            )
            for each in scores
        ]
        others = [each for each in data.eval_results or () if each.dataset_type != _HELD_OUT]
        data.eval_results = [*others, *ours]
    card.write_text(str(content), encoding="utf-8")


def held_out_scores(state: TrainerState) -> tuple[float, list[HeldOutScore]]:
    """Return the scores of the model that is kept, and the step at which they were measured.

    That is the best step if the trainer selects one, else the last evaluation. There may be none.

    Args:
        state: the trainer's state.
    """
    found: dict[float, dict[str, Any]] = {}
    for entry in state.log_history:
        found.setdefault(entry["step"], {}).update(entry)
    measured = {step: scores for step, entry in found.items() if (scores := list(_named(entry)))}
    best = state.best_global_step if state.best_model_checkpoint else None
    step = best if best in measured else max(measured, default=0)
    return step, measured.get(step, [])


def _named(entry: dict[str, Any]) -> Iterator[HeldOutScore]:
    for key, value in entry.items():
        name = next((name for name in _SCORES if key.startswith("eval_") and key.endswith(f"_{name}")), None)
        if name is not None:
            data = key[len("eval_") : -len(name)].strip("_")
            yield HeldOutScore(data or "eval", name, float(value))


def _data(pairs: Any) -> str:
    if isinstance(pairs, IterableDataset):
        return "a stream of pairs"
    pairs = pairs.pairs if isinstance(pairs, PackedPairs) else pairs
    synthetic = sum(pairs["synthetic"])
    return f"{len(pairs):,} pairs" + (f" ({synthetic:,} of them synthetic)" if synthetic else "")


def _method(alignment: AlignmentArguments, pairs: Any) -> list[str]:
    trained = {"forward": ("forward",), "reverse": ("reverse",)}.get(alignment.directions, ("forward", "reverse"))
    names = (*trained, *(name for name in _TERMS if name not in ("forward", "reverse")))
    rows = [
        f"| `{name}` | {alignment.weight(name):g} | {_TERMS[name].format(estimator=alignment.mi_estimator)} |"
        for name in alignment.active(names)
    ]
    section = [
        f"{_TITLE}\n",
        f"Trained on {_data(pairs)} of an instruction x and a response y with the terms of *{PAPER['title']}* "
        f"([arXiv {PAPER['id']}](https://arxiv.org/abs/{PAPER['id']})), directions: {alignment.directions}.\n",
        "| term | weight | |",
        "|---|---|---|",
        *rows,
    ]
    if alignment.uses_embeddings:
        section.append(
            f"\nEmbedding terms: temperature {alignment.contrastive_temperature:g}, projection to "
            f"{alignment.projection_dim} dimensions (0: none)."
        )
    return section


def _scores(state: TrainerState, step: float, scores: Sequence[HeldOutScore]) -> list[str]:
    if not scores:
        return []
    best = ", the step with the best evaluation" if step == state.best_global_step else ""
    rows = [f"| {each.data} | `{each.name}` | {each.value:.4g} | {_SCORES[each.name]} |" for each in scores]
    return [
        f"\n### Held-out scores\n\nMeasured after step {step} of {state.global_step}{best}.\n",
        "| data | score | value | |",
        "|---|---|---|---|",
        *rows,
    ]
