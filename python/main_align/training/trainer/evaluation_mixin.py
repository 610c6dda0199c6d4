"""EvaluationMixin: evaluate and predict with the loss and metrics of the whole data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from ..dataset.preparation import packs_evaluation
from ..metrics.evaluation import Evaluation
from .mixin_base import MixinBase


class EvaluationMixin(MixinBase):
    """Evaluation part of AlignmentMixin."""

    def evaluate(self, eval_dataset: Any = None, *args: Any, **options: Any) -> dict[str, float]:
        """Override to prepare a data set of any supported form, and to keep training metrics out of its log lines."""
        with self._monitor.paused():
            return super().evaluate(self._prepared(eval_dataset, "eval"), *args, **options)

    def predict(self, test_dataset: Any, *args: Any, **options: Any) -> PredictionOutput:
        """Override to prepare a data set of any supported form, and to keep training metrics out of its log lines."""
        with self._monitor.paused():
            return super().predict(self._prepared(test_dataset, "test"), *args, **options)

    def get_eval_dataloader(self, *args: Any, **options: Any) -> Any:
        """Override to evaluate the whole data set: `dataloader_drop_last` is about the steps of training."""
        with self._whole_batches_and_the_rest():
            return super().get_eval_dataloader(*args, **options)

    def get_test_dataloader(self, *args: Any, **options: Any) -> Any:
        """Override to predict the whole data set."""
        with self._whole_batches_and_the_rest():
            return super().get_test_dataloader(*args, **options)

    @contextmanager
    def _whole_batches_and_the_rest(self) -> Iterator[None]:
        drops_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drops_last

    def _prepared(self, dataset: Any, name: str) -> Any:
        """Return a prepared data set. None and names refer to data sets that the trainer has prepared."""
        if dataset is None or isinstance(dataset, str):
            return dataset
        prepare: Any = self._prepare_dataset  # type: ignore[attr-defined]
        return prepare(dataset, None, self.args, packs_evaluation(self.args), None, name)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Override to add the loss and the metrics of the whole data set."""
        self._evaluation = Evaluation()
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            metrics = self._evaluation.read(self._loss, self.alignment.columns, self._current_synthetic_weight())
        finally:
            self._evaluation = None
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Override to return the loss alone; there are no logits."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = cast("Tensor", self.compute_loss(model, inputs)).detach()
        if self._evaluation is not None:
            self._evaluation.add_loss(loss)
        return loss, None, None
