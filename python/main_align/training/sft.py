"""run_sft: train with MutualAlignmentTrainer from a configuration file and options, as `trl sft` does with its own.

load_pairs loads one split of a file, a folder or a hub id.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DatasetDict, IterableDatasetDict, load_dataset, load_from_disk
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from ..errors import UserError
from ..models.smollm2 import SMOLLM2, smollm2_folder
from .config import MutualAlignmentConfig
from .trainer.trainer import MutualAlignmentTrainer

LOADERS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""The `datasets` loader of each file ending."""


def make_parser(prog: str = "main-align sft") -> TrlParser:
    """Return TRL's parser of ScriptArguments, MutualAlignmentConfig and ModelConfig.

    Args:
        prog: name of the program in the help.
    """
    kinds: Any = (ScriptArguments, MutualAlignmentConfig, ModelConfig)
    return TrlParser(kinds, prog=prog)


def run_sft(arguments: Sequence[str]) -> MutualAlignmentTrainer:
    """Train and save a model.

    Args:
        arguments: command-line options of TRL's parser, `--config FILE` among them.

    Returns:
        The trainer after training. The model is saved in its `output_dir`.

    Raises:
        UserError: no data set or model is given, or the data set cannot be loaded.
    """
    try:
        script, training, model = make_parser().parse_args_and_config(list(arguments))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    for name, value in (("dataset_name", script.dataset_name), ("model_name_or_path", model.model_name_or_path)):
        if not value:
            raise UserError(f"{name} is not set: give --{name}, or write it into the file of --config")
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    streaming, name = script.dataset_streaming, script.dataset_name or ""
    load = partial(load_pairs, name, script.dataset_config, streaming=streaming)
    trainer = MutualAlignmentTrainer(
        model=str(smollm2_folder()) if model.model_name_or_path == SMOLLM2 else model.model_name_or_path,
        args=training,
        train_dataset=load(script.dataset_train_split),
        eval_dataset=None if training.eval_strategy == "no" else load(script.dataset_test_split),
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    trainer.create_model_card(dataset_name=None if Path(name).exists() else name)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    return trainer


def load_pairs(source: str, config: str | None = None, split: str = "train", *, streaming: bool = False) -> Any:
    """Load one split of a data set.

    Args:
        source: a file, which has the split `train`, a folder saved by `datasets`, or a hub id.
        config: configuration of a hub data set. Default: none.
        split: name of the split. Default: "train".
        streaming: read the rows when they are needed. Default: False.

    Raises:
        UserError: an unknown ending, or no such split.
    """
    data = _load(source, config, streaming)
    if split not in data:
        raise UserError(
            f"{source} has no split {split!r}, but {', '.join(map(repr, data))}: set the split (of main-align sft: "
            "--dataset_train_split and --dataset_test_split), or turn evaluation off"
        )
    return data[split]


def _load(source: str, config: str | None, streaming: bool) -> DatasetDict | IterableDatasetDict:
    path = Path(source)
    if path.is_dir():
        found = load_from_disk(str(path))
        return found if isinstance(found, DatasetDict) else DatasetDict(train=found)
    if path.is_file():
        if path.suffix not in LOADERS:
            raise UserError(f"{path}: the ending is not one of {', '.join(LOADERS)}")
        options: dict[str, Any] = {"data_files": str(path)}
        return load_dataset(LOADERS[path.suffix], streaming=streaming, **options)
    return load_dataset(source, name=config, streaming=streaming)
