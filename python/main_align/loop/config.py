"""LoopConfig: every setting of a run of MAIN's loop, checked on creation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from ..checks import check_values
from ..errors import UserError

Direction = Literal["forward", "reverse"]
LOOP_MANAGED: Mapping[str, str] = {  # trainer setting: the loop setting (or rule) that determines it
    "output_dir": "output_dir",
    "seed": "seed",
    "max_length": "max_length",
    "synthetic_weight_schedule": "synthetic_weight_schedule",
    "synthetic_weight": "synthetic_weight",
    "use_cpu": "use_cpu",
    "directions": "the stage",
    "forward_weight": "the stage",
    "reverse_weight": "the stage",
    "save_strategy": "the loop: each stage saves its model at its end",
    "eval_strategy": "the loop: it evaluates on `eval_pairs` after each training stage",
    "eval_on_start": "the loop: it evaluates on `eval_pairs` after each training stage",
    "load_best_model_at_end": "the loop: each stage saves its model at its end",
    "metric_for_best_model": "the loop: each stage saves its model at its end",
    "greater_is_better": "the loop: each stage saves its model at its end",
    "resume_from_checkpoint": "the loop: the same command resumes a run after its last finished stage",
    "push_to_hub": "the loop: its models stay in output_dir; push the folders that report.json names",
    "disable_tqdm": "the command, which draws its own progress bar",
    "model_init_kwargs": "dtype and trust_remote_code",
    "trust_remote_code": "trust_remote_code",
    "chat_template_path": "the model's tokenizer: save the template with it, because generation needs it too",
    "eos_token": "the model's tokenizer: save the token with it, because generation needs it too",
}


STAGE_SEEDS = 1000  # seeds of stages that each seed of a run has
MAX_SEED = (1 << 32) // STAGE_SEEDS  # numpy takes 32 bits of a stage's seed
MIN_TEMPERATURE = 1e-6  # samples as greedy decoding does; logits over far smaller ones are infinite


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Hold the settings of one run. The result depends on all of them except `output_dir`.

    Args:
        seed_pairs: file, `datasets` folder or hub id, in any format that main-align reads. Pairs to train on.
        output_dir: folder of the run.
        unpaired_responses: the same kinds of source. Responses without instructions; the last two stages generate
            instructions for them and filter the pairs. Default: none, and the run ends with the last round.
        eval_pairs: the same kinds of source. Pairs for evaluation only. Default: the seed pairs are evaluated.
        split: split of `datasets` sources. Default: the only split.
        instruction_field: field of the instruction in the pairs; needs `response_field`. Default: recognised.
        response_field: field of the response in the pairs and in `unpaired_responses`. Default: recognised.
        id_field: field of the row's id. Default: recognised.
        model: folder, hub id or "smollm2". The initial model of both directions.
        reverse_model: initial model of the reverse direction; needs `use_peft=False`. Default: `model`.
        trust_remote_code: run code that comes with the model.
        dtype: "auto", "float32", "bfloat16" or "float16". Dtype of the model; "auto" picks the faster one.
        use_cpu: run on the CPU even if the machine has a GPU.
        use_peft: train two LoRA adapters on one base model. False: train two full models.
        lora_r: rank of the adapters.
        lora_alpha: scale of the adapters, as in `peft.LoraConfig`.
        lora_dropout: dropout of the adapters, in [0, 1).
        lora_target_modules: modules that get an adapter, as in `peft.LoraConfig`.
        rounds: rounds of generation and training, at least 1.
        warmup_epochs: epochs on the seed pairs in both directions before round 1. 0 skips the warm-up.
        synthetic_weight_schedule: rule of α, the weight of generated pairs: "loss_ratio" (dynamic, our rule),
            "constant" or "linear".
        synthetic_weight: α of "constant", final α of "linear", initial α of "loss_ratio"; in [0, 1].
        max_length: tokens of the longest training sequence. Longer pairs are dropped and counted.
        training: other settings of `MutualAlignmentConfig`.
        seed: random seed of the run; every stage derives its own.
        generator: "transformers", "vllm" or "auto", which takes vLLM if it is installed and one process uses CUDA.
        max_new_tokens: tokens of the longest generated text.
        temperature: sampling temperature, at least 1e-6. 0: greedy decoding.
        top_p: probability mass of nucleus sampling, in (0, 1].
        batch_tokens: tokens of one generation batch, including padding and new tokens.
        filter_by: "forward_nll" (the paper's score) or "mutual".
        keep: fraction of the scored pairs to keep, in (0, 1].

    Raises:
        UserError: a value has the wrong type or is out of range; the message names the setting.
    """

    # Data
    seed_pairs: str
    output_dir: str
    unpaired_responses: str | None = None
    eval_pairs: str | None = None
    split: str | None = None
    instruction_field: str | None = None
    response_field: str | None = None
    id_field: str | None = None

    # Models
    model: str = "smollm2"
    reverse_model: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    use_cpu: bool = False
    use_peft: bool = True
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: str | list[str] = "all-linear"

    # Training
    rounds: int = 2
    warmup_epochs: float = 1.0
    synthetic_weight_schedule: Literal["loss_ratio", "constant", "linear"] = "loss_ratio"
    synthetic_weight: float = 0.5
    max_length: int = 1024
    training: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    # Generation
    generator: Literal["transformers", "vllm", "auto"] = "transformers"
    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    batch_tokens: int = 8192

    # Filter
    filter_by: Literal["forward_nll", "mutual"] = "forward_nll"
    keep: float = 0.5

    def __post_init__(self) -> None:
        minimum = {"rounds": 1, "max_new_tokens": 1, "batch_tokens": 1, "lora_r": 1, "lora_alpha": 1, "max_length": 8}
        minimum |= {"warmup_epochs": 0, "temperature": 0, "synthetic_weight": 0, "lora_dropout": 0, "seed": 0}
        check_values(self, minimum)
        check_temperature(self.temperature)
        self._check_ranges()
        if bool(self.instruction_field) and not self.response_field:
            raise UserError("instruction_field needs response_field: name both sides, or neither")
        if self.use_peft and self.reverse_model is not None:
            raise UserError(
                "reverse_model needs two full models, but LoRA adapters share one base model: "
                "set use_peft to false, or remove reverse_model"
            )
        for name in self.training:
            if name in LOOP_MANAGED:
                raise UserError(f"training.{name} is set by {LOOP_MANAGED[name]}; remove it from `training`")

    def _check_ranges(self) -> None:
        for name in ("synthetic_weight", "top_p", "keep"):
            if not getattr(self, name) <= 1:
                raise UserError(f"{name} must be at most 1, got {getattr(self, name)}")
        if self.seed >= MAX_SEED:
            raise UserError(f"seed must be below {MAX_SEED}, got {self.seed}: every stage derives its own")
        if not self.lora_dropout < 1:
            raise UserError(f"lora_dropout must be below 1, got {self.lora_dropout}: nothing would be trained")
        for name in ("top_p", "keep"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")


def check_temperature(temperature: float | None) -> None:
    """Raise UserError if logits divided by the sampling temperature would overflow."""
    if temperature is not None and 0 < temperature < MIN_TEMPERATURE:
        raise UserError(f"temperature must be 0, which is greedy, or at least {MIN_TEMPERATURE}, got {temperature}")


def check_names(settings: Mapping[str, Any], known: list[str], source: str) -> None:
    """Raise UserError for the first unknown setting and suggest the closest known one."""
    for name in settings:
        if name not in known:
            closest = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {closest[0]!r}?" if closest else f"known are {', '.join(sorted(known))}"
            raise UserError(f"{source}: unknown setting {name!r}; {hint}")
