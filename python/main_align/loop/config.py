"""LoopConfig: every setting of a run of MAIN's loop, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import UserError

Direction = Literal["forward", "reverse"]
OWN: Mapping[str, str] = {  # settings of the trainer that the loop makes itself, and from what
    "output_dir": "output_dir",
    "seed": "seed",
    "max_length": "max_length",
    "synthetic_weight_schedule": "alpha_schedule",
    "synthetic_weight": "alpha",
    "use_cpu": "use_cpu",
    "directions": "the stage",
    "forward_weight": "the stage",
    "reverse_weight": "the stage",
    "save_strategy": "the loop: each stage saves its model when it is done",
    "eval_strategy": "the loop: it measures `heldout` after each training stage",
    "disable_tqdm": "the command, which has a display of its own",
    "model_init_kwargs": "dtype and trust_remote_code",
    "trust_remote_code": "trust_remote_code",
    "chat_template_path": "the model's tokenizer: save it with the template, for generation reads it too",
    "eos_token": "the model's tokenizer: save it with the token, for generation reads it too",
}


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of one run. Everything but `output_dir` is part of what the result depends on.

    Raises UserError, naming the key, for a value of the wrong kind or out of range.
    """

    # What is read and written
    seeds: str  # pairs: a file, a `datasets` folder or a hub id, in any form main-align reads
    output_dir: str
    unlabelled: str | None = None  # responses without instructions, for the augmentation at the end
    heldout: str | None = None  # pairs never trained on: the losses of the report are theirs
    split: str | None = None  # of `datasets` sources
    instruction_field: str | None = None  # of the pairs, together with response_field
    response_field: str | None = None  # of the pairs, and of `unlabelled`
    id_field: str | None = None

    # The models: one base with a LoRA adapter a direction, or (use_peft: false) two full models
    model: str = "smollm2"
    reverse_model: str | None = None  # another model to start the reverse direction from
    trust_remote_code: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    use_cpu: bool = False
    use_peft: bool = True
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: str | list[str] = "all-linear"

    # The loop
    rounds: int = 2
    warmup_epochs: float = 1.0  # epochs on the seeds in both directions before round 1; 0 leaves it out
    alpha_schedule: Literal["loss_ratio", "constant", "linear"] = "loss_ratio"
    alpha: float = 0.5
    max_length: int = 1024  # tokens of the longest sequence; longer pairs are left out and counted
    training: dict[str, Any] = field(default_factory=dict)  # anything else of MutualAlignmentConfig
    seed: int = 0

    # What the models write
    generator: Literal["transformers", "vllm", "auto"] = "transformers"
    max_new_tokens: int = 256
    temperature: float = 0.7  # 0: always the likeliest token
    top_p: float = 0.95
    batch_tokens: int = 8192  # of one batch of generation, prompts and new tokens together

    # The filter
    criterion: Literal["forward_nll", "mutual"] = "forward_nll"
    keep: float = 0.5  # share of the scored pairs that is kept

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for item in fields(self):
            value = getattr(self, item.name)
            if not _fits(value, kinds[item.name]):
                raise UserError(f"{item.name} must be {_words(kinds[item.name])}, got {value!r}")
        self._check_ranges()
        if bool(self.instruction_field) and not self.response_field:
            raise UserError("instruction_field needs response_field: name both sides, or neither")
        if self.use_peft and self.reverse_model is not None:
            raise UserError(
                "reverse_model is for two full models, and LoRA adapters share one base: "
                "set use_peft to false, or leave reverse_model out"
            )
        for name in self.training:
            if name in OWN:
                raise UserError(f"training.{name} is set by {OWN[name]}; leave it out of `training`")

    def _check_ranges(self) -> None:
        at_least = {"rounds": 1, "max_new_tokens": 1, "batch_tokens": 1, "lora_r": 1, "lora_alpha": 1, "max_length": 8}
        at_least |= {"warmup_epochs": 0, "temperature": 0, "alpha": 0, "lora_dropout": 0, "seed": 0}
        for name, low in at_least.items():
            if not getattr(self, name) >= low:
                raise UserError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("alpha", "top_p", "keep"):
            if not getattr(self, name) <= 1:
                raise UserError(f"{name} must be at most 1, got {getattr(self, name)}")
        for name in ("top_p", "keep"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")


def check_names(given: Mapping[str, Any], known: list[str], where: str) -> None:
    """Raise UserError for the first unknown key, naming the nearest known one."""
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise UserError(f"{where}: unknown setting {name!r}; {hint}")


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner and isinstance(value, str)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    """How a message names a kind of value."""
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    if kind in plain:
        return plain[kind]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is list:
        return "a list of text"
    if get_origin(kind) is dict:
        return "a table of settings"
    return " or ".join(_words(each) for each in get_args(kind))
