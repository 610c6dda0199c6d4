"""MutualAlignmentPlugin: mutual alignment in axolotl, from its YAML file.

    plugins:
      - main_align.integrations.axolotl.MutualAlignmentPlugin
    mutual_alignment:
      semantic_weight: 0.1

The plugin loads the pairs as text and trains them with AlignmentMixin on axolotl's own trainer, so optimizers,
schedulers, adapters, checkpoints and callbacks are axolotl's. Written against the interface of axolotl 0.21.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from axolotl.integrations.base import BasePlugin
from datasets import Dataset, concatenate_datasets
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import UserError
from ..training.config import AlignmentArguments
from ..training.sft import load_pairs
from ..training.trainer.mixin import AlignmentMixin

__all__ = ["MutualAlignmentInput", "MutualAlignmentPlugin", "MutualAlignmentTrainingArguments"]

_DATASET_KEYS = ("path", "name", "split", "type")
_DATASET_DEFAULTS = {  # what axolotl adds to an entry of `datasets`
    "chat_template": "tokenizer_default",
    "message_property_mappings": {"role": "role", "content": "content"},
}
_PACKED = "every micro-batch is packed into one sequence without padding; set it to false"
_FUSED = "the loss of the head is fused already, and the forward must be the model's own; leave it out"


class Refusal(NamedTuple):
    """An axolotl option that is refused if `is_used` is true of its value."""

    name: str
    is_used: Callable[[Any], bool]
    why: str


def _is_parallel(size: Any) -> bool:
    return bool(size) and size > 1


REFUSED = (
    Refusal("sample_packing", bool, _PACKED),
    Refusal("eval_sample_packing", bool, _PACKED),
    Refusal("batch_flattening", bool, _PACKED),
    Refusal("pad_to_sequence_len", bool, _PACKED),
    Refusal("balance_labels", bool, "a step's tokens are counted over all its micro-batches; leave it out"),
    Refusal("train_on_inputs", bool, "p(x|y) trains the instructions; set mutual_alignment.reverse_weight"),
    Refusal("excess_length_strategy", bool, "set mutual_alignment.over_length to error, drop or truncate"),
    Refusal("eval_sequence_len", bool, "set sequence_len, which applies to both data sets"),
    Refusal("dataset_exact_deduplication", bool, "pairs that share a text are no negatives; remove duplicates before"),
    Refusal("pretraining_dataset", bool, "plain text has no two sides to align; give pairs in `datasets`"),
    Refusal("streaming", bool, "the pairs are loaded whole; leave it out"),
    Refusal("processor_type", bool, "only text is trained; leave it out"),
    Refusal("rl", bool, "the plugin is for supervised fine-tuning; leave it out"),
    Refusal("reward_model", bool, "the plugin is for supervised fine-tuning; leave it out"),
    Refusal("process_reward_model", bool, "the plugin is for supervised fine-tuning; leave it out"),
    Refusal("trainer_cls", bool, "the plugin brings its own trainer; leave it out"),
    Refusal("cut_cross_entropy", bool, _FUSED),
    Refusal("chunked_cross_entropy", bool, _FUSED),
    Refusal("liger_cross_entropy", bool, _FUSED),
    Refusal("liger_fused_linear_cross_entropy", bool, _FUSED),
    Refusal("use_dft", bool, "it replaces the loss; leave it out"),
    Refusal("use_eaft", bool, "it replaces the loss; leave it out"),
    Refusal("context_parallel_size", _is_parallel, "use data parallelism or FSDP"),
    Refusal("tensor_parallel_size", _is_parallel, "use data parallelism or FSDP"),
)
"""options of axolotl that would have no effect, or that would change the loss"""


@dataclass
class MutualAlignmentSettings(AlignmentArguments):
    """The section `mutual_alignment` of the YAML file: the settings of AlignmentArguments, with the same defaults."""

    __pydantic_config__ = ConfigDict(extra="forbid")


class MutualAlignmentInput(BaseModel):
    """Part of axolotl's configuration: checks the section `mutual_alignment`, and refuses what cannot work with it.

    Args:
        mutual_alignment: the settings. Default: those of AlignmentArguments.

    Raises:
        ValidationError: an unknown setting, a value out of range, or an option of REFUSED; it names the remedy.
    """

    mutual_alignment: MutualAlignmentSettings = Field(default_factory=MutualAlignmentSettings)

    @model_validator(mode="before")
    @classmethod
    def refuse_incompatible_options(cls, data: Any) -> Any:
        """Check the user's own options, before axolotl adds its defaults.

        Args:
            data: the YAML file as a mapping.
        """
        if isinstance(data, Mapping):
            _check_options(data)
        return data

    @model_validator(mode="after")
    def check_settings(self) -> MutualAlignmentInput:
        """Check the values of the section."""
        self.mutual_alignment.check()
        return self


@dataclass
class MutualAlignmentTrainingArguments(AlignmentArguments):
    """Fields that axolotl's training arguments get from the plugin: those of AlignmentArguments, and `max_length`."""

    max_length: int | None = None


class MutualAlignmentPlugin(BasePlugin):
    """Train with mutual alignment instead of plain supervised fine-tuning."""

    def get_input_args(self) -> str:
        """Return the name of the configuration's part."""
        return f"{__name__}.{MutualAlignmentInput.__name__}"

    def get_training_args_mixin(self) -> str:
        """Return the name of the part of the training arguments."""
        return f"{__name__}.{MutualAlignmentTrainingArguments.__name__}"

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Return the values of the training arguments.

        Args:
            cfg: axolotl's configuration.
        """
        return {**(cfg.mutual_alignment or {}), "max_length": cfg.sequence_len}

    def get_trainer_cls(self, cfg: Any) -> type:
        """Return axolotl's trainer with AlignmentMixin.

        Args:
            cfg: axolotl's configuration.
        """
        return _trainer_class()

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[Callable[..., None], dict]:
        """Return a collator that is none, because the mixin packs pairs with its own.

        Args:
            cfg: axolotl's configuration.
            is_eval: the collator is for evaluation. Default: False.
        """
        return _no_collator, {}

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Load `datasets` and `test_datasets` as text; the trainer recognises the pairs and tokenises them.

        Args:
            cfg: axolotl's configuration.
            preprocess: `axolotl preprocess` calls it. Default: False.

        Returns:
            axolotl's TrainDatasetMeta. The number of steps is left to the trainer, which may drop long pairs.

        Raises:
            UserError: a data set cannot be loaded, or several have different columns.
        """
        from axolotl.common.datasets import TrainDatasetMeta

        train, held_out = _load(cfg.datasets, "train"), _load(cfg.test_datasets, "test")
        if train is None:
            raise UserError("datasets: there is no data set; name at least one")
        if held_out is None and cfg.val_set_size:
            size = int(cfg.val_set_size) if cfg.val_set_size > 1 else float(cfg.val_set_size)
            parts = train.train_test_split(test_size=size, seed=cfg.seed)
            train, held_out = parts["train"], parts["test"]
        return TrainDatasetMeta(train_dataset=train, eval_dataset=held_out, total_num_steps=None)


def _check_options(data: Mapping[str, Any]) -> None:
    for name, is_used, why in REFUSED:
        if is_used(data.get(name)):
            raise UserError(f"{name}: {data[name]!r} is not supported with mutual alignment: {why}")
    for plugin in data.get("plugins") or ():
        if "CutCrossEntropy" in str(plugin):
            raise UserError(f"plugins: {plugin} is not supported with mutual alignment: {_FUSED}")
    for key in ("datasets", "test_datasets"):
        for number, entry in enumerate(data.get(key) or (), 1):
            _check_dataset(f"{key} {number}", dict(entry))


def _check_dataset(where: str, entry: dict[str, Any]) -> None:
    used = (name for name, value in entry.items() if value and value != _DATASET_DEFAULTS.get(name))
    if unknown := sorted(set(used) - set(_DATASET_KEYS)):
        raise UserError(
            f"{where}: {', '.join(unknown)} would have no effect: pairs are recognised by their fields (docs/data.md). "
            f"Keep {', '.join(_DATASET_KEYS)}, and convert the data beforehand"
        )
    if entry.get("type") not in (None, "chat_template"):
        raise UserError(
            f"{where}: type {entry['type']!r} would have no effect: the chat template formats the pairs. "
            "Use type: chat_template, or leave it out"
        )


def _load(entries: Iterable[Mapping[str, Any]] | None, split: str) -> Dataset | None:
    parts = [load_pairs(entry["path"], entry.get("name"), entry.get("split") or split) for entry in entries or ()]
    columns = [sorted(part.column_names) for part in parts]
    if any(each != columns[0] for each in columns):
        listed = "; ".join(", ".join(each) for each in columns)
        raise UserError(f"the data sets have different columns ({listed}): write them as one format")
    return concatenate_datasets(parts) if parts else None


def _no_collator(*args: Any, **options: Any) -> None:
    return None


@cache
def _trainer_class() -> type:
    from axolotl.core.trainers.base import AxolotlTrainer  # imports plugins' arguments, so not while they are loaded

    class AxolotlAlignmentTrainer(AlignmentMixin, AxolotlTrainer):
        """AxolotlTrainer with mutual alignment."""

        tag_names = ["axolotl", "mutual-alignment"]  # noqa: RUF012
        reports_token_perplexity = False  # the loss is a sum of terms

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            # axolotl reads these where Trainer reads data_collator
            self.train_data_collator = self.eval_data_collator = self.data_collator

    return AxolotlAlignmentTrainer
