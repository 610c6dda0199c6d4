"""The axolotl plugin, driven by stand-ins of the parts of axolotl 0.21 that call it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("pydantic")

import pydantic
from datasets import Dataset, load_from_disk
from main_align.errors import UserError
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from .. import forked
from ..tiny_models import DEVICE, byte_tokenizer, tiny_model
from ..training.trainers import ROWS, trainer_with

PLUGIN = "main_align.integrations.axolotl.MutualAlignmentPlugin"
PAIRS = [{"instruction": f"What is {n} plus {n}?", "response": f"It is {2 * n}."} for n in range(10)]


class BasePlugin:
    """axolotl.integrations.base.BasePlugin: each method has a default that does nothing."""


class AxolotlTrainer(Trainer):
    """axolotl.core.trainers.base.AxolotlTrainer: its arguments, and collators by the kind of data set."""

    def __init__(
        self, *args: Any, bench_data_collator=None, eval_data_collator=None, dataset_tags=None, **options: Any
    ):
        self.bench_data_collator, self.eval_data_collator = bench_data_collator, eval_data_collator
        super().__init__(*args, **options)
        self.model_accepts_loss_kwargs = False
        self.train_data_collator = self.data_collator

    def _get_dataloader(self, dataset, description, batch_size, sampler_fn=None, is_training=False, **_):
        collator = self.data_collator if is_training else self.eval_data_collator
        dataset = self._remove_unused_columns(dataset, description=description)
        if "length" in dataset.column_names:
            dataset = dataset.remove_columns(["length"])
        sampler = sampler_fn(dataset) if sampler_fn else None
        loader = DataLoader(dataset, batch_size=batch_size, collate_fn=collator, sampler=sampler)
        return self.accelerator.prepare(loader)


@dataclass
class AxolotlTrainingMixins:
    """axolotl.core.training_args_base.AxolotlTrainingMixins: some of its fields."""

    sample_packing: bool = False
    max_seq_length: int = 2048


@dataclass
class TrainDatasetMeta:
    """axolotl.common.datasets.TrainDatasetMeta."""

    train_dataset: Any
    eval_dataset: Any = None
    total_num_steps: int | None = None


class AxolotlInputConfig(pydantic.BaseModel):
    """axolotl.utils.schemas.config.AxolotlInputConfig: some of its options."""

    sequence_len: int = 512
    datasets: list[dict[str, Any]] | None = None
    test_datasets: list[dict[str, Any]] | None = None
    val_set_size: float = 0.0
    seed: int = 42


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The plugin, loaded as axolotl loads it."""
    contents: dict[str, dict[str, Any]] = {
        "axolotl": {},
        "axolotl.integrations": {},
        "axolotl.integrations.base": {"BasePlugin": BasePlugin},
        "axolotl.core": {},
        "axolotl.core.trainers": {},
        "axolotl.core.trainers.base": {"AxolotlTrainer": AxolotlTrainer},
        "axolotl.common": {},
        "axolotl.common.datasets": {"TrainDatasetMeta": TrainDatasetMeta},
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, PLUGIN.rpartition(".")[0], raising=False)
    yield imported(PLUGIN)()
    sys.modules.pop(PLUGIN.rpartition(".")[0])  # it holds the stand-ins


def imported(dotted: str) -> Any:
    """Import a class as axolotl does, by code that it writes."""
    module, _, name = dotted.rpartition(".")
    namespace: dict[str, Any] = {}
    exec(f"from {module} import {name}", namespace)
    return namespace[name]


def validated(plugin: Any, **yaml: Any) -> SimpleNamespace:
    """The configuration after axolotl's validation, which adds defaults and merges the plugin's part into its own."""
    roles = {"role": "role", "content": "content"}
    added = {"chat_template": "tokenizer_default", "message_property_mappings": roles, "trust_remote_code": False}
    for key in {"datasets", "test_datasets"} & set(yaml):
        yaml[key] = [added | entry for entry in yaml[key]]
    merged = type("AxolotlInputConfig", (AxolotlInputConfig, imported(plugin.get_input_args())), {})
    values = merged(**yaml).model_dump(exclude_none=True)
    return SimpleNamespace(**dict.fromkeys(AxolotlInputConfig.model_fields) | values)


def training_arguments(plugin: Any, cfg: Any, **options: Any) -> Any:
    """The training arguments as axolotl merges and fills them."""
    merged = type("AxolotlTrainingMixins", (AxolotlTrainingMixins, imported(plugin.get_training_args_mixin())), {})
    cls = dataclass(type("AxolotlTrainingArguments", (merged, TrainingArguments), {}))
    globals()["AxolotlTrainingArguments"] = cls  # where transformers' own saving looks it up
    given = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": [], "bf16": False}
    given |= {"use_cpu": DEVICE == "cpu", "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-2}
    return cls(**given | {"max_seq_length": cfg.sequence_len} | plugin.get_training_args(cfg) | options)


def trainer(plugin: Any, cfg: Any, args: Any, data: TrainDatasetMeta, model: Any = None) -> Any:
    """The trainer as HFCausalTrainerBuilder.build makes it."""
    tokenizer = byte_tokenizer()
    collators = {}
    for is_eval in (False, True):
        collator, options = plugin.get_collator_cls_and_kwargs(cfg, is_eval=is_eval)
        collators[is_eval] = collator(tokenizer, padding=True, pad_to_multiple_of=64, **options, return_tensors="pt")
    more = {"eval_data_collator": collators[True]} if collators[True] else {}
    return plugin.get_trainer_cls(cfg)(
        model=tiny_model() if model is None else model,
        train_dataset=data.train_dataset,
        eval_dataset=data.eval_dataset,
        args=args,
        data_collator=collators[False],
        callbacks=[],
        bench_data_collator=object(),
        dataset_tags=["pairs"],
        processing_class=tokenizer,
        **more,
    )


def test_a_step_is_that_of_the_trainer_without_axolotl(plugin, tmp_path):
    """The same loss and terms in the log, from the section of the YAML file."""
    settings = {"semantic_weight": 0.5, "projection_dim": 0}
    cfg = validated(plugin, mutual_alignment=settings)
    args = training_arguments(plugin, cfg, output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=len(ROWS))
    ours = trainer(plugin, cfg, args, TrainDatasetMeta(ROWS))
    ours.train()
    theirs = trainer_with(tmp_path, max_steps=1, per_device_train_batch_size=len(ROWS), **settings)
    theirs.train()
    for name in ("loss", "loss_forward", "loss_reverse", "loss_semantic", "nll_y_given_x", "mi"):
        assert ours.state.log_history[0][name] == pytest.approx(theirs.state.log_history[0][name], abs=1e-4), name


def test_pairs_are_loaded_split_trained_evaluated_and_saved_with_an_adapter(plugin, tmp_path):
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    cfg = validated(plugin, datasets=[{"path": str(path), "type": "chat_template"}], val_set_size=0.2, sequence_len=200)
    data = plugin.load_datasets(cfg)
    assert (len(data.train_dataset), len(data.eval_dataset), data.total_num_steps) == (8, 2, None)
    args = training_arguments(plugin, cfg, output_dir=str(out), eval_strategy="steps", eval_steps=1)
    assert args.max_length == 200
    lora = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    run = trainer(plugin, cfg, args, data, model=lora)
    run.train()
    logged = [entry for entry in run.state.log_history if "eval_nll_y_given_x" in entry]
    assert len(logged) == 2
    run.save_model(str(out))
    run.create_model_card(model_name="out")
    assert (out / "adapter_model.safetensors").is_file()
    assert "## Mutual alignment" in (out / "README.md").read_text()


def test_a_full_model_is_saved_without_the_projection_heads(plugin, tmp_path):
    cfg = validated(plugin)
    args = training_arguments(plugin, cfg, output_dir=str(tmp_path))
    run = trainer(plugin, cfg, args, TrainDatasetMeta(ROWS))
    run.train()
    run.save_model(str(tmp_path))
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]


def test_several_data_sets_are_joined_and_test_sets_kept_apart(plugin, tmp_path):
    Dataset.from_list(PAIRS).save_to_disk(str(tmp_path / "folder"))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS[:3]))
    entries = [{"path": str(tmp_path / "folder")}, {"path": str(path)}]
    cfg = validated(plugin, datasets=entries, test_datasets=[{"path": str(path), "split": "train"}])
    data = plugin.load_datasets(cfg)
    assert (len(data.train_dataset), len(data.eval_dataset)) == (13, 3)
    assert data.train_dataset[0] == load_from_disk(str(tmp_path / "folder"))[0]
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(UserError, match=r"different columns \(instruction, response; completion, prompt\)"):
        plugin.load_datasets(validated(plugin, datasets=[{"path": str(path)}, {"path": str(other)}]))
    with pytest.raises(UserError, match="has no split 'test', but 'train'"):
        plugin.load_datasets(validated(plugin, datasets=[{"path": str(path)}], test_datasets=[{"path": str(path)}]))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ({"sample_packing": True}, "sample_packing: True is not supported.*set it to false"),
        ({"pad_to_sequence_len": True}, "pad_to_sequence_len.*without padding"),
        ({"train_on_inputs": True}, "set mutual_alignment.reverse_weight"),
        ({"excess_length_strategy": "drop"}, "set mutual_alignment.over_length"),
        ({"context_parallel_size": 2}, "use data parallelism or FSDP"),
        ({"rl": "dpo"}, "supervised fine-tuning"),
        ({"plugins": ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]}, "fused already.*leave it out"),
        (
            {"datasets": [{"path": "a", "type": "alpaca"}]},
            "datasets 1: type 'alpaca' would have no effect.*chat_template",
        ),
        ({"datasets": [{"path": "a", "field_messages": "turns"}]}, "datasets 1: field_messages would have no effect"),
        ({"mutual_alignment": {"semantics": 1}}, "semantics"),
        ({"mutual_alignment": {"semantic_weight": -1}}, "semantic_weight must be finite and not negative"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(plugin, yaml, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        validated(plugin, **yaml)


def test_options_that_are_off_are_accepted(plugin):
    cfg = validated(plugin, sample_packing=False, context_parallel_size=1, plugins=[PLUGIN], train_on_inputs=False)
    assert cfg.mutual_alignment["semantic_weight"] == 0.1


def test_main_align_does_not_import_axolotl(tmp_path):
    code = "import main_align, main_align.training, sys; print(any(name.startswith('axolotl') for name in sys.modules))"
    assert forked.run(exec, code, log=tmp_path / "log").strip() == "False"
