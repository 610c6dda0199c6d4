"""The two models of a run: one base with an adapter a direction, or two full models.

Every stage loads what it needs from files and lets go of it at its end, so a run that goes on after
a kill is in the same state as one that was never stopped, and only the filter holds both models.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..errors import UserError
from ..models.context_length import context_length
from ..models.devices import DTYPES
from ..models.encoding import PairEncoder
from ..models.load import MERGE, LoadedModel, find, folder_digest, load, trained_encoder
from .config import Direction, LoopConfig
from .plan import Stage
from .run_dir import RunFolder

# PEFT keeps adapters as attributes of a module, so "forward" itself can be none.
ADAPTERS: dict[Direction, str] = {"forward": "forward_adapter", "reverse": "reverse_adapter"}


@dataclass(frozen=True)
class Known:
    """What is known of a model before its weights are loaded."""

    name: str
    digest: str
    tokenizer: PreTrainedTokenizerBase
    context: int  # tokens of the longest sequence it takes
    encoder: PairEncoder  # the layout it is trained on and writes in


def identify(name: str, config: LoopConfig) -> Known:
    """Load a model's config and tokenizer. Raises UserError, with the remedy, where it cannot serve."""
    found = find(name, trust_remote_code=config.trust_remote_code)
    if found.base is not None and config.generator != "transformers":
        raise UserError(
            f"{name!r} is an adapter, which vLLM does not start from: use generator transformers, or {MERGE}"
        )
    tokenizer = found.tokenizer
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name!r} has no EOS token, so a model could never learn where a text ends. "
            "Set tokenizer.eos_token and save the tokenizer again."
        )
    rows = int(found.config.get_text_config().vocab_size)
    encoder = trained_encoder(name, tokenizer, rows, "rows in its vocabulary matrix")
    context = context_length(found.config) or config.max_length
    if config.max_length > context:
        raise UserError(f"max_length {config.max_length} exceeds the {context} tokens that {name!r} takes; lower it")
    return Known(name, found.digest, tokenizer, context, encoder)


def check_same_vocabulary(forward: Known, reverse: Known) -> None:
    """Raise UserError unless both models read and write the same tokens in the same template."""
    a, b = forward.tokenizer, reverse.tokenizer
    mine, other = a.get_vocab(), b.get_vocab()
    differ = sorted(token for token in mine.keys() | other.keys() if mine.get(token) != other.get(token))
    if differ:
        raise UserError(
            f"{forward.name!r} and {reverse.name!r} have different vocabularies ({len(mine)} and {len(other)} tokens; "
            f"{len(differ)} differ, for one {differ[0]!r}), so their likelihoods cannot be compared: "
            "start both directions from models with one tokenizer, or leave reverse_model out"
        )
    if a.chat_template != b.chat_template:
        raise UserError(
            f"{forward.name!r} and {reverse.name!r} have different chat templates: save one tokenizer with both models"
        )


class Directions:
    """Loads the models of both directions as the finished stages of a run left them.

    `dtype` is that of the weights where a model writes and scores, and of the base under adapters;
    full models are trained and saved in float32.
    """

    def __init__(
        self, config: LoopConfig, folder: RunFolder, known: dict[Direction, Known], device: torch.device, dtype: str
    ) -> None:
        self.config, self.folder, self.known = config, folder, known
        self.device, self.dtype = device, dtype

    def to_train(self, stage: Stage, seed: int) -> Any:
        """The model that the stage trains: as its last stage left it, else new from the base."""
        direction, start = stage.direction, stage.start(stage.direction)
        if not self.config.use_peft:
            return self._load(self._source(direction, start), "float32").train()
        from peft import LoraConfig, PeftModel, get_peft_model

        base = self._load(self._base(direction), self.dtype)
        if start is not None:
            return PeftModel.from_pretrained(
                base, self.checkpoint(start, direction), adapter_name=ADAPTERS[direction], is_trainable=True
            )
        c = self.config
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=c.lora_r,
            lora_alpha=c.lora_alpha,
            lora_dropout=c.lora_dropout,
            target_modules=c.lora_target_modules,
        )
        set_seed(seed)  # the adapter begins at random
        try:
            return get_peft_model(base, lora, adapter_name=ADAPTERS[direction])
        except ValueError as error:
            raise UserError(f"lora_target_modules {c.lora_target_modules!r}: {error}") from error

    def to_write(self, stage: Stage) -> Any:
        """The model that writes in this stage; an adapter is merged, which makes every step cheaper."""
        model = self._adapted(stage, [stage.direction])
        return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model

    def to_score(self, stage: Stage) -> tuple[LoadedModel, LoadedModel, Any]:
        """Both models, and what to call with a direction before its model is used."""
        if self.config.use_peft:
            model = self._adapted(stage, ["forward", "reverse"])
            backbone: Any = model.get_base_model()
            pair = [self._described(backbone, stage, direction) for direction in ("forward", "reverse")]
            return pair[0], pair[1], lambda direction: model.set_adapter(ADAPTERS[direction])
        pair = [
            self._described(self._load(self._source(direction, stage.start(direction)), self.dtype), stage, direction)
            for direction in ("forward", "reverse")
        ]
        return pair[0], pair[1], lambda direction: None

    def served(self, stage: Stage) -> tuple[str, Path | None]:
        """The model that writes in this stage by name or folder, and the folder of its adapter."""
        start = stage.start(stage.direction)
        if not self.config.use_peft:
            return self._source(stage.direction, start), None
        return self._base(stage.direction), None if start is None else self.checkpoint(start, stage.direction)

    def save(self, model: Any, direction: Direction, folder: Path) -> None:
        """Write the trained model, or its adapter, and the tokenizer into `folder`/`direction`."""
        if self.config.use_peft:
            name = ADAPTERS[direction]
            lora = model.peft_config[name]
            lora.target_modules = sorted(lora.target_modules)  # a set would be written in any order
            model.save_pretrained(folder, selected_adapters=[name])
            (folder / name).rename(folder / direction)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        else:
            model.save_pretrained(folder / direction)
        self.known[direction].tokenizer.save_pretrained(folder / direction)

    def checkpoint(self, stage: str, direction: Direction) -> Path:
        """Where a finished training stage saved its model or adapter."""
        return self.folder.stage(stage) / direction

    def _adapted(self, stage: Stage, directions: list[Direction]) -> Any:
        if not self.config.use_peft:
            return self._load(self._source(directions[0], stage.start(directions[0])), self.dtype)
        from peft import PeftModel

        model: Any = self._load(self._base(directions[0]), self.dtype)
        for direction in directions:
            start = stage.start(direction)
            if start is None:
                continue  # untrained: the base itself
            folder = self.checkpoint(start, direction)
            if isinstance(model, PeftModel):
                model.load_adapter(folder, adapter_name=ADAPTERS[direction])
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=ADAPTERS[direction])
        return model.eval()

    def _described(self, model: PreTrainedModel, stage: Stage, direction: Direction) -> LoadedModel:
        start = stage.start(direction)
        known = self.known[direction]
        digest = known.digest if start is None else folder_digest(self.checkpoint(start, direction))
        return LoadedModel(model, known.tokenizer, f"{start or known.name}/{direction}", None, digest)

    def _base(self, direction: Direction) -> str:
        return self.known[direction].name

    def _source(self, direction: Direction, start: str | None) -> str:
        return self._base(direction) if start is None else str(self.checkpoint(start, direction))

    def _load(self, source: str, dtype: str) -> Any:
        trust = self.config.trust_remote_code
        return load(source, dtype=DTYPES[dtype], device=self.device, trust_remote_code=trust).model


def let_go() -> None:
    """Give back the memory of models that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
