"""ModelPair, ModelInfo, inspect_model and describe_model: the forward and the reverse model of a run.

The two are LoRA adapters on one base model, or two full models. Every stage loads its models from files and frees them
at its end, so a resumed run has the same state as an uninterrupted one. Only the filter holds both models.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..errors import UserError
from ..models.checkpoint import MERGE, Checkpoint, find_checkpoint, folder_digest
from ..models.context_length import context_length
from ..models.devices import DTYPES
from ..models.encoding import PairEncoder
from ..models.load import LoadedModel, load, trained_encoder
from .config import Direction, LoopConfig
from .plan import Stage
from .run_dir import RunDir

# PEFT stores adapters as attributes of modules, where "forward" is taken.
ADAPTERS: dict[Direction, str] = {"forward": "forward_adapter", "reverse": "reverse_adapter"}


@dataclass(frozen=True)
class ModelInfo:
    """A model before its weights are loaded.

    Args:
        name: folder or hub id.
        digest: hash of its files.
        tokenizer: its tokenizer.
        context: tokens of the longest sequence it accepts.
        encoder: encoder of pairs for training and generation.
    """

    name: str
    digest: str
    tokenizer: PreTrainedTokenizerBase
    context: int
    encoder: PairEncoder


class ScoringModels(NamedTuple):
    """Both models of the filter; call `activate(direction)` before each use of a model."""

    forward: LoadedModel
    reverse: LoadedModel
    activate: Callable[[Direction], Any]


class VllmSource(NamedTuple):
    """A model for vLLM: folder or hub id, and the folder and rank of its LoRA adapter (None: no adapter)."""

    model: str
    adapter: Path | None
    lora_rank: int | None


def inspect_model(name: str, config: LoopConfig) -> ModelInfo:
    """Load a model's config and tokenizer and check that the loop can use them.

    Raises:
        UserError: the model cannot be used; the message gives the remedy.
    """
    checkpoint = find_checkpoint(name, trust_remote_code=config.trust_remote_code)
    if checkpoint.base is not None and config.generator != "transformers":
        raise UserError(f"{name!r} is an adapter, which vLLM cannot start from: use generator transformers, or {MERGE}")
    tokenizer = checkpoint.tokenizer
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name!r} has no EOS token, so the model cannot learn where a text ends. "
            "Set tokenizer.eos_token and save the tokenizer again."
        )
    info = describe_model(name, checkpoint, config.max_length)
    if config.max_length > info.context:
        raise UserError(
            f"max_length {config.max_length} exceeds the context of {name!r}, {info.context} tokens; lower it"
        )
    return info


def describe_model(name: str, checkpoint: Checkpoint, default_context: int) -> ModelInfo:
    """Return what generation needs to know of a model.

    Args:
        name: the model as the user names it.
        checkpoint: the model.
        default_context: context of a model whose config has no limit, in tokens.

    Raises:
        UserError: the tokenizer does not fit the model.
    """
    rows = int(checkpoint.config.get_text_config().vocab_size)
    encoder = trained_encoder(name, checkpoint.tokenizer, rows, "rows in its vocabulary matrix")
    context = context_length(checkpoint.config) or default_context
    return ModelInfo(name, checkpoint.digest, checkpoint.tokenizer, context, encoder)


def check_same_vocabulary(forward: ModelInfo, reverse: ModelInfo) -> None:
    """Raise UserError unless both models use the same tokens and chat template."""
    forward_vocab, reverse_vocab = forward.tokenizer.get_vocab(), reverse.tokenizer.get_vocab()
    tokens = forward_vocab.keys() | reverse_vocab.keys()
    different = sorted(token for token in tokens if forward_vocab.get(token) != reverse_vocab.get(token))
    if different:
        raise UserError(
            f"{forward.name!r} and {reverse.name!r} have different vocabularies ({len(forward_vocab)} and "
            f"{len(reverse_vocab)} tokens; {len(different)} differ, such as {different[0]!r}), so their likelihoods "
            "cannot be compared: start both directions from models with one tokenizer, or remove reverse_model"
        )
    if forward.tokenizer.chat_template != reverse.tokenizer.chat_template:
        raise UserError(
            f"{forward.name!r} and {reverse.name!r} have different chat templates: save one tokenizer with both models"
        )


class ModelPair:
    """Load and save the models of both directions.

    Args:
        config: settings of the run.
        run_dir: folder of the run; its finished stages contain the checkpoints.
        info: the initial model of each direction.
        device: device of the models.
        dtype: dtype for generation and scoring, and of the base model under adapters. Full models are trained and
            saved in float32.
    """

    def __init__(
        self, config: LoopConfig, run_dir: RunDir, info: dict[Direction, ModelInfo], device: torch.device, dtype: str
    ) -> None:
        self.config, self.run_dir, self.info = config, run_dir, info
        self.device, self.dtype = device, dtype

    def load_for_training(self, stage: Stage, seed: int) -> Any:
        """Load the model that the stage trains: its latest checkpoint, or a new one from the initial model.

        Args:
            stage: a training stage.
            seed: random seed of a new adapter.

        Raises:
            UserError: `lora_target_modules` matches no module.
        """
        direction, source_stage = stage.direction, stage.model_stage(stage.direction)
        if not self.config.use_peft:
            return self._load(self._source(direction, source_stage), "float32").train()
        from peft import LoraConfig, PeftModel, get_peft_model

        base = self._load(self.info[direction].name, self.dtype)
        if source_stage is not None:
            checkpoint = self.checkpoint(source_stage, direction)
            return PeftModel.from_pretrained(base, checkpoint, adapter_name=ADAPTERS[direction], is_trainable=True)
        c = self.config
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=c.lora_r,
            lora_alpha=c.lora_alpha,
            lora_dropout=c.lora_dropout,
            target_modules=c.lora_target_modules,
        )
        set_seed(seed)  # PEFT initialises the adapter at random
        try:
            return get_peft_model(base, lora, adapter_name=ADAPTERS[direction])
        except ValueError as error:
            raise UserError(f"lora_target_modules {c.lora_target_modules!r}: {error}") from error

    def load_for_generation(self, stage: Stage) -> Any:
        """Load the model that generates in this stage. An adapter is merged, which makes every step cheaper."""
        model = self._load_with_adapters(stage, [stage.direction])
        return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model

    def load_for_scoring(self, stage: Stage) -> ScoringModels:
        """Load both models for the filter."""
        directions: tuple[Direction, ...] = ("forward", "reverse")
        if self.config.use_peft:
            model = self._load_with_adapters(stage, list(directions))
            base: Any = model.get_base_model()
            both = [self._describe(base, stage, direction) for direction in directions]
            return ScoringModels(both[0], both[1], lambda direction: model.set_adapter(ADAPTERS[direction]))
        full = [self._load(self._source(each, stage.model_stage(each)), self.dtype) for each in directions]
        both = [self._describe(model, stage, each) for model, each in zip(full, directions, strict=True)]
        return ScoringModels(both[0], both[1], lambda direction: None)

    def vllm_source(self, stage: Stage) -> VllmSource:
        """Return the files of the model that generates in this stage."""
        source_stage = stage.model_stage(stage.direction)
        if not self.config.use_peft or source_stage is None:
            return VllmSource(self._source(stage.direction, source_stage), None, None)
        adapter = self.checkpoint(source_stage, stage.direction)
        return VllmSource(self.info[stage.direction].name, adapter, self.config.lora_r)

    def save(self, model: Any, direction: Direction, folder: Path) -> None:
        """Write the trained model, or its adapter, and the tokenizer to `folder`/`direction`."""
        if self.config.use_peft:
            name = ADAPTERS[direction]
            lora = model.peft_config[name]
            if not isinstance(lora.target_modules, str):  # text is a regular expression
                lora.target_modules = sorted(lora.target_modules)  # a set has no fixed order
            model.save_pretrained(folder, selected_adapters=[name])
            (folder / name).rename(folder / direction)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        else:
            model.save_pretrained(folder / direction)
        self.info[direction].tokenizer.save_pretrained(folder / direction)

    def checkpoint(self, stage: str, direction: Direction) -> Path:
        """Return the folder in which a finished training stage saved its model or adapter."""
        return self.run_dir.stage_dir(stage) / direction

    def _load_with_adapters(self, stage: Stage, directions: list[Direction]) -> Any:
        if not self.config.use_peft:
            return self._load(self._source(directions[0], stage.model_stage(directions[0])), self.dtype)
        from peft import PeftModel

        model: Any = self._load(self.info[directions[0]].name, self.dtype)
        for direction in directions:
            source_stage = stage.model_stage(direction)
            if source_stage is None:
                continue  # untrained: the base model itself
            folder = self.checkpoint(source_stage, direction)
            if isinstance(model, PeftModel):
                model.load_adapter(folder, adapter_name=ADAPTERS[direction])
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=ADAPTERS[direction])
        return model.eval()

    def _describe(self, model: PreTrainedModel, stage: Stage, direction: Direction) -> LoadedModel:
        source_stage, info = stage.model_stage(direction), self.info[direction]
        digest = info.digest if source_stage is None else folder_digest(self.checkpoint(source_stage, direction))
        return LoadedModel(model, info.tokenizer, f"{source_stage or info.name}/{direction}", None, digest)

    def _source(self, direction: Direction, source_stage: str | None) -> str:
        return self.info[direction].name if source_stage is None else str(self.checkpoint(source_stage, direction))

    def _load(self, source: str, dtype: str) -> Any:
        trust = self.config.trust_remote_code
        return load(source, dtype=DTYPES[dtype], device=self.device, trust_remote_code=trust).model


def free_memory() -> None:
    """Free the memory of models without references."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
