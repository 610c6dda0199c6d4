"""run_sft: train with MutualAlignmentTrainer from a configuration file and options, as `trl sft` does with its own.

load_pairs loads one split of files, of a saved folder or of a hub id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any

from datasets import load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from trl import get_peft_config, get_quantization_config

from ..data.read import open_source
from ..data.sources.hub_dataset import HubDataset, is_saved_dataset
from ..data.sources.source import Source
from ..data.sources.stdin import STDIN
from ..errors import UserError
from ..models.smollm2 import SMOLLM2, smollm2_folder
from ..trainer_arguments import refused_settings
from .dataset.local_files import as_dataset, splits_of_folder
from .sft_parser import SftParser
from .trainer.trainer import MutualAlignmentTrainer


@refused_settings()
def run_sft(arguments: Sequence[str]) -> MutualAlignmentTrainer:
    """Train and save a model.

    Args:
        arguments: command-line options of TRL's parser, `--config FILE` among them.

    Returns:
        The trainer after training. The model is saved in its `output_dir`.

    Raises:
        UserError: an option is wrong, no data set or model is given, the data set cannot be loaded, the checkpoint to
            resume from is no folder, or a training library refuses a setting.
    """
    script, training, model = SftParser().parse(arguments)
    for name, value in (("dataset_name", script.dataset_name), ("model_name_or_path", model.model_name_or_path)):
        if not value:
            raise UserError(f"{name} is not set: give --{name}, or write it into the file of --config")
    resume = training.resume_from_checkpoint
    if isinstance(resume, str) and not Path(resume).is_dir():
        raise UserError(
            f"resume_from_checkpoint: {resume} is not a folder: give a checkpoint, such as OUTPUT/checkpoint-500; in a "
            "settings file, true takes the last one"
        )
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
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(training.output_dir)
    hub_id = None if Path(name).exists() or has_magic(name) else name
    trainer.create_model_card(Path(training.output_dir or ".").absolute().name, hub_id)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=hub_id)
    return trainer


def load_pairs(source: str, config: str | None = None, split: str = "train", *, streaming: bool = False) -> Any:
    """Load one split of a data set.

    Args:
        source: a file, a pattern or a folder of files that `main-align score` reads, a folder saved by `datasets`, or
            a hub id. Files have the split `train`; names of a folder's files may divide them into splits.
        config: configuration of a data set of `datasets`. Default: none.
        split: name of the split. Default: "train".
        streaming: read the rows when they are needed. Default: False.

    Raises:
        UserError: the source does not exist or cannot be read, or it has no such split or configuration.
    """
    data = _load(source, config, streaming)
    if split not in data:
        raise UserError(
            f"{source} has no split {split!r}, but {', '.join(map(repr, data))}: set the split (of main-align sft: "
            "--dataset_train_split and --dataset_test_split), or turn evaluation off"
        )
    found = data[split]
    return as_dataset(found, streaming=streaming) if isinstance(found, Source) else found


def _load(source: str, config: str | None, streaming: bool) -> Mapping[str, Any]:
    """Return the splits: data sets of `datasets`, or files."""
    if source == STDIN:
        raise UserError("standard input is read only once, but every process of a training reads its data: give a file")
    path = Path(source)
    is_saved = is_saved_dataset(path)
    if path.is_dir() and not is_saved and not config:
        return splits_of_folder(path)
    if not path.is_dir() and not isinstance(opened := open_source(source), HubDataset):
        if config:
            raise UserError(f"{source} is read from files, which have no configurations: leave out {config!r}")
        return {"train": opened}
    if is_saved and config:
        raise UserError(f"{source} was made by save_to_disk and has no configurations: leave out {config!r}")
    try:
        data = load_from_disk(source) if is_saved else load_dataset(source, name=config, streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"{source}: the data set cannot be loaded: {error}. Give a file, a folder or a reachable hub id."
        ) from error
    return data if isinstance(data, Mapping) else {"train": data}
