"""AlignmentEvaluator, AlignmentCallback: alignment scores of held-out pairs while a model is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..checks import check_counts, check_types
from ..data.fields import NO_FIELDS, Fields
from ..data.in_memory import iter_pairs
from ..errors import UserError
from ..models.load import LoadedModel, check_quantisation, unwrap_peft
from ..scoring.columns import lower_is_better
from ..scoring.scorer import Scorer
from ..trainer_arguments import check_best_metric

MEANS = ("mutual", "mutual_novel", "nll_y_given_x", "nll_x_given_y")
"""The columns whose means are reported; scoring.columns defines them."""


class AlignmentEvaluator:
    """Score held-out pairs with a model that is being trained.

        evaluator = AlignmentEvaluator(held_out)
        trainer.add_callback(AlignmentCallback(trainer, evaluator))

    The pairs are always the same and in the same order, and they are each other's candidates for retrieval, so numbers
    of different steps are comparable.

    Args:
        pairs: the held-out pairs: records, a `datasets.Dataset`, or anything else that `Scorer.score` takes.
        fields: field names that override the recognised record formats. Default: none.
        batch_tokens: tokens of one forward pass, both directions of its pairs together. Default: as for `Scorer`.
        max_length: longest sequence, in tokens. Longer pairs are left out. Default: the model's limit.

    Raises:
        UserError: there is no pair, or a number is out of range.
    """

    def __init__(
        self,
        pairs: Iterable[Any],
        *,
        fields: Fields = NO_FIELDS,
        batch_tokens: int | None = None,
        max_length: int | None = None,
    ) -> None:
        values = {"fields": fields, "batch_tokens": batch_tokens, "max_length": max_length}
        check_types(AlignmentEvaluator.__init__, values)
        check_counts(batch_tokens=batch_tokens, max_length=max_length)
        self.pairs = list(iter_pairs(pairs, fields))
        if not self.pairs:
            raise UserError("pairs: there is no held-out pair")
        self.batch_tokens, self.max_length = batch_tokens, max_length

    def __call__(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """Score the pairs; the model is left as it was found.

        Args:
            model: a causal language model, also with PEFT adapters or in DistributedDataParallel.
            tokenizer: its tokenizer.

        Returns:
            The mean of each column of MEANS over the scored pairs (nats per token; `mutual` and `mutual_novel` nats per
            √token); `retrieval`, the fraction of instructions whose own response is the nearest; and `pairs`, the
            number of scored pairs.

        Raises:
            UserError: no pair can be scored (the message has the first reason), or a PEFT method has virtual tokens.
        """
        plain = unwrap_peft(extract_model_from_parallel(model))
        with _scoring_mode(plain):
            loaded = LoadedModel(plain, tokenizer, "a model in training", None, "")
            scorer = Scorer(loaded, batch_tokens=self.batch_tokens, max_length=self.max_length)
            measured = scorer.measure(self.pairs)
        rows = measured.rows(None)
        scored = [row for row in rows if row["mutual"] is not None]
        if not scored:
            raise UserError(f"no held-out pair can be scored; the first: {rows[0]['status']}, {rows[0]['reason']}")
        metrics = {name: float(np.mean([row[name] for row in scored])) for name in MEANS}
        states = measured.states(measured.is_scored)
        return {**metrics, "retrieval": _retrieval(states.embed_x, states.embed_y), "pairs": float(len(scored))}


class AlignmentCallback(TrainerCallback):
    """Run an AlignmentEvaluator at every evaluation of a trainer.

    The metrics are logged as `eval_heldout_mutual` and so on, and join the evaluation's own, so
    `metric_for_best_model="eval_heldout_mutual"` works; `nll_y_given_x` and `nll_x_given_y` also need
    `greater_is_better=False`. Every process scores all pairs.

    Args:
        trainer: a `transformers.Trainer` or a subclass. Add the callback to it.
        evaluator: scores the held-out pairs.
        name: what comes after `eval_` in the names of the metrics. Default "heldout".

    Raises:
        UserError: the trainer would keep the model whose score is worst, or its model is quantised so that the scores
            would depend on the batch.
    """

    def __init__(self, trainer: Any, evaluator: AlignmentEvaluator, name: str = "heldout") -> None:
        check_quantisation(unwrap_peft(trainer.model))
        check_best_metric(trainer.args, [f"{name}_{mean}" for mean in MEANS if lower_is_better(mean)])
        self.trainer, self.evaluator, self.name = trainer, evaluator, name
        self._last: tuple[int, dict[str, float]] | None = None

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **others: Any
    ) -> None:
        """Score the pairs, once a step even if there are several evaluation sets.

        Args:
            args: the trainer's arguments.
            state: the trainer's state.
            control: the trainer's control.
            metrics: the evaluation's metrics, which are extended.
            others: the model and everything else that a trainer passes.
        """
        if self._last is None or self._last[0] != state.global_step:
            found = self.evaluator(self.trainer.model, self.trainer.processing_class)
            self._last = state.global_step, {f"eval_{self.name}_{key}": value for key, value in found.items()}
            self.trainer.log(dict(self._last[1]))
        if metrics is not None:
            metrics.update(self._last[1])


@contextmanager
def _scoring_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put a model into eval mode; at the end restore every module's mode and class and the attention implementation."""
    states = {module: (type(module), module.training) for module in model.modules()}
    attention = model.config._attn_implementation
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        for module, (kind, training) in states.items():
            module.__class__, module.training = kind, training  # Forward lets layers on a CPU use CPU kernels


def _retrieval(x: np.ndarray, y: np.ndarray) -> float:
    """Return the fraction of rows whose own y has the largest cosine with x, after centring each side. Ties count."""
    x, y = (side - side.mean(0) for side in (x.astype(np.float64), y.astype(np.float64)))
    y /= np.linalg.norm(y, axis=1, keepdims=True).clip(1e-12)
    scores = x @ y.T
    return float((scores <= scores.diagonal()[:, None] + 1e-12).all(1).mean())
