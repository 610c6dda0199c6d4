"""CheckpointMixin: save and restore projection heads, running means and token count; extend the model card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ..model import checkpoint, projection
from . import model_card
from .mixin_base import MixinBase


@contextmanager
def _unchanged_dtypes(model: nn.Module) -> Iterator[None]:
    """Restore the dtypes of parameters: TRL trains adapters of a quantised model in bfloat16, PEFT loads float32."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        dtype = dtypes.get(name, parameter.dtype)  # an adapter may be new
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


class CheckpointMixin(MixinBase):
    """Checkpoint part of AlignmentMixin."""

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Override to add method, data, terms with their weights, and held-out scores."""
        super().create_model_card(*args, **options)
        path = Path(self.args.output_dir or ".") / "README.md"
        if self.is_world_process_zero() and path.is_file():
            model_card.extend_card(path, self.alignment, self.train_dataset, self.state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        weights: dict[str, Tensor] = {}
        if self._head is not None:
            weights = self._head.state_dict() if state_dict is None else projection.pop_head(state_dict)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            checkpoint.write(
                output_dir or self.args.output_dir or ".", weights, self._synthetic_weight, self._monitor.num_tokens
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _unchanged_dtypes(cast("Any", self.model) if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._monitor.resume(self._read_checkpoint(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_deepspeed_enabled:  # which loads the weights without the method above
            self._monitor.resume(self._read_checkpoint(checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Override to leave out the projection heads, whose weights come from their own file."""
        missing = [name for name in load_result.missing_keys if f".{projection.NAME}." not in f".{name}"]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_best_model(self) -> None:
        best, model = self.state.best_model_checkpoint, cast("Any", self.model)
        if not best or not checkpoint.is_in(best):
            super()._load_best_model()  # warns that it is missing; a completed run must not fail
            return
        with _unchanged_dtypes(model):
            if hasattr(model, "get_base_model") and set(model.peft_config) - {"default"}:
                super()._load_from_checkpoint(best)  # transformers' _load_best_model reads the adapter `default` alone
            else:
                super()._load_best_model()
        self._read_checkpoint(best)

    def _read_checkpoint(self, folder: str) -> int:
        """Restore heads and running means, and return the number of tokens."""
        if self.is_fsdp_enabled and not checkpoint.is_in(folder):
            return 0
        restores_heads = not self.is_fsdp_enabled  # FSDP restores them with its sharded state
        return checkpoint.read(folder, self._head, self._synthetic_weight, restores_heads=restores_heads)
