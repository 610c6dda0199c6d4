"""Settings of the trainers reach the training, or are refused."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")
pytest.importorskip("peft")

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, DatasetDict
from main_align.errors import UserError
from main_align.models.encoding import LogpColumn
from main_align.training import AlignmentArguments, AlignmentMixin, MutualAlignmentTrainer
from main_align.training.trainer.settings import REFUSED as REFUSED_SETTINGS
from main_align.training.trainer.settings import check_batches
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tests.align.tiny_models import CHATML, DEVICE, byte_tokenizer, cpu_only, tiny_model, tiny_model_folder
from tests.align.training.step_gradients import PAIRS
from tests.align.training.trainers import LORA, ROWS, config, trainer_with


def test_the_settings_chat_template_and_stop_token_are_trained(tmp_path):
    """Sequences are built with the tokenizer that is saved, not with an earlier state of it."""
    (tmp_path / "new.jinja").write_text(CHATML.replace("im_", "turn_"))
    special = ("<|endoftext|>", "<|turn_start|>", "<|turn_end|>")
    path = {"chat_template_path": str(tmp_path / "new.jinja")}
    cases = {
        "<|turn_end|>": path | {"eos_token": "<|turn_end|>"},
        "</s>": {"eos_token": "</s>"},
    }
    for ending, settings in cases.items():
        plain = byte_tokenizer(template=None, special=(*special, "</s>"), eos="<|endoftext|>")
        trainer = trainer_with(tmp_path, tokenizer=plain, eval_dataset=ROWS, **settings)
        (batch, *_) = trainer.get_train_dataloader()
        pairs = batch["pairs"]
        last = pairs["targets"][(pairs["segments"] == LogpColumn.Y_GIVEN_X).nonzero().max()]
        assert plain.convert_ids_to_tokens(int(last)) == ending == trainer.processing_class.eos_token
        assert trainer.model.config.eos_token_id == int(last)
        text = plain.decode(batch["input_ids"][0])
        assert text.count("<|turn_start|>user\n") == (8 if "chat_template_path" in settings else 0)


@pytest.mark.parametrize("lora", [False, True])
def test_a_chat_template_of_another_tokenizer_brings_its_tokens(tmp_path, lora):
    byte_tokenizer(special=("<|endoftext|>", "<|im_start|>", "<|im_end|>")).save_pretrained(tmp_path / "other")
    plain = byte_tokenizer(template=None, special=("<|endoftext|>",), bos="<|endoftext|>", eos="<|endoftext|>")
    settings = {"chat_template_path": str(tmp_path / "other"), "max_steps": 1}
    trainer = trainer_with(tmp_path, tokenizer=plain, peft_config=LoraConfig(**LORA) if lora else None, **settings)
    (batch, *_) = trainer.get_train_dataloader()
    start = plain.convert_tokens_to_ids("<|im_start|>")
    assert int((batch["input_ids"] == start).sum()) == 4 * 2 * 2
    before = trainer.model.get_input_embeddings().weight.detach().clone()
    trainer.train()
    if not lora:
        assert not torch.equal(trainer.model.get_input_embeddings().weight[start], before[start])


def test_a_stop_token_that_is_never_trained_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"eos_token '<\|endoftext\|>' is not what the chat template ends .*<\|im_end\|>"
    ):
        trainer_with(tmp_path, eos_token="<|endoftext|>")


def test_the_default_loss_of_earlier_trl_is_the_same_loss(tmp_path):
    args = config(tmp_path)
    args.loss_type = "chunked_nll"
    trainer = MutualAlignmentTrainer(tiny_model(), args, train_dataset=ROWS, processing_class=byte_tokenizer())
    assert trainer.args.loss_type == "nll"


@pytest.mark.parametrize("counted", ["all", "non_padding"])
def test_every_token_is_an_input_token(tmp_path, counted):
    """The token that ends a turn is often that of padding, which is not counted where there is some."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    trainer = trainer_with(tmp_path, tokenizer=tokenizer, include_num_input_tokens_seen=counted)
    trainer.train()
    tokens = next(entry["num_tokens"] for entry in reversed(trainer.state.log_history) if "num_tokens" in entry)
    assert trainer.state.num_input_tokens_seen == tokens


REFUSED = {
    "label_smoothing": ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    "dft": ({"loss_type": "dft"}, "loss_type='dft'"),
    "prompt_loss": ({"completion_only_loss": False}, "completion_only_loss"),
    "liger": (
        {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": True}},
        "liger_kernel_config=.*leave Liger's losses out",
    ),
    "assistant_only": ({"assistant_only_loss": True}, "assistant_only_loss=True .*last assistant turn"),
    "truncation_mode": ({"truncation_mode": "keep_end"}, "truncation_mode='keep_end' .*over_length='truncate'"),
    "skip_prepare": ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "dataset_kwargs=.*recognised by its columns"),
    "text_field": ({"dataset_text_field": "body"}, "dataset_text_field='body'"),
    "padding": ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8 .*without padding"),
    "experts": ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef=0.1 .*load-balancing"),
    "static_graph": ({"ddp_static_graph": True}, "ddp_static_graph=True .*would not reduce"),
    "dispatch": ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True .* cannot be split"),
    "lengths": ({"length_column_name": "n"}, "length_column_name='n'"),
    "packed_lengths": ({"packing": True, "train_sampling_strategy": "group_by_length"}, "has no effect with packing"),
    "packed_evaluation": ({"eval_packing": True, "packing_strategy": "wrapped"}, "cuts samples"),
    "directions": ({"directions": "backward"}, "directions must be one of both, forward, reverse"),
    "over_length": ({"over_length": "cut"}, "over_length must be one of"),
    "gap_of_one_direction": (
        {"duality_gap_weight": 0.1, "directions": "forward"},
        "duality gap needs directions='both'",
    ),
    "negative_width": ({"projection_dim": -1}, "projection_dim"),
    "nothing_left": (
        {
            "directions": "reverse",
            "reverse_weight": 0.0,
            "semantic_weight": 0.0,
            "intentional_weight": 0.0,
            "structural_weight": 0.0,
        },
        "all trained terms have weight 0",
    ),
    "worst_model": (
        {"metric_for_best_model": "eval_nll_y_given_x", "greater_is_better": True},
        "would keep the worst model: lower values are better. Set greater_is_better=False",
    ),
    "no_batch": ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
    "no_steps": ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
    "negative_seed": ({"seed": -1}, "seed must be at least 0 and below 4294967296, got -1"),
    "large_seed": ({"seed": 1 << 32}, "seed must be at least 0 and below 4294967296, got 4294967296"),
    "part_of_a_seed": ({"seed": 1.5}, "seed must be at least 0 and below 4294967296, got 1.5"),
    "no_epoch": (
        {"num_train_epochs": -1, "max_steps": -1},
        "num_train_epochs=-1 trains nothing: give a positive one, or max_steps",
    ),
    "optimizer_words": ({"optim_args": "nonsense"}, "optim_args: expected settings such as 'rank=64,.*got 'nonsense'"),
    "no_length": ({"max_length": 0}, "max_length must be at least 1, got 0"),
    "negative_length": ({"max_length": -5}, "max_length must be at least 1, got -5"),
    "overlong_pairs": ({"max_length": 16}, "8 rows of the train data set"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_work_are_refused_before_training(tmp_path, name):
    settings, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        trainer_with(tmp_path, **settings)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"torch_compile_backend": "nonsense"}, "torch_compile_backend must be one of .*inductor.*, got 'nonsense'"),
        ({"torch_compile_mode": "nonsense"}, "torch_compile_mode must be one of default.*, got 'nonsense'"),
    ],
)
def test_an_unknown_compiler_is_refused(tmp_path, monkeypatch, option, message):
    for name in ("BACKEND", "MODE"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "")  # transformers sets both
    with pytest.raises(UserError, match=message):
        trainer_with(tmp_path, **option)


@pytest.mark.parametrize("base", [Trainer, SFTTrainer])
def test_liger_changes_the_layers_alone(tmp_path, monkeypatch, base):
    liger, asked = ModuleType("liger_kernel.transformers"), []
    liger._apply_liger_kernel_to_instance = lambda model, **options: asked.append(options)
    monkeypatch.setitem(sys.modules, liger.__name__, liger)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    args = config(tmp_path, use_liger_kernel=True, liger_kernel_config={"rope": False}, max_steps=1)
    mixed = type("Mixed", (AlignmentMixin, base), {})
    mixed(tiny_model(), args, train_dataset=ROWS, processing_class=byte_tokenizer()).train()
    assert asked == [{"rope": False, "fused_linear_cross_entropy": False}]


@pytest.mark.parametrize("packing", [False, True])
def test_a_data_set_that_is_smaller_than_the_only_batch_is_refused(tmp_path, packing):
    """transformers would end without a step and report success."""
    trainer = trainer_with(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=9, packing=packing)
    with pytest.raises(UserError, match=r"dataloader_drop_last=True leaves nothing to train: .* a batch of 9 .*lower"):
        trainer.train()
    trainer_with(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=8).train()


def test_several_data_sets_are_evaluated_only(tmp_path):
    both = DatasetDict({"train": ROWS, "test": ROWS})
    mixed = type("Mixed", (AlignmentMixin, Trainer), {})
    with pytest.raises(UserError, match=r"the train data set is a dict of data sets \(train, test\): pass one"):
        mixed(tiny_model(), config(tmp_path), train_dataset=both, processing_class=byte_tokenizer())
    with pytest.raises(UserError, match="the test data set is a dict"):
        trainer_with(tmp_path).predict(both)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_exactly_uneven_batches_are_refused(split, drop_last):
    options = {"num_processes": 3, "split_batches": split, "even_batches": False, "use_seedable_sampler": True}
    for rows in range(1, 20):
        loader = DataLoader(list(range(rows)), batch_size=6 if split else 2, drop_last=drop_last)
        loaders = [prepare_data_loader(loader, process_index=process, **options) for process in range(3)]
        if len({len(list(loader.batch_sampler)) for loader in loaders}) == 1:
            check_batches(loaders[0])
        else:
            with pytest.raises(UserError, match=f"{rows} rows unevenly: in batches of 2, some of the 3 processes"):
                check_batches(loaders[0])


def test_a_revision_of_a_folder_is_refused(tmp_path):
    model = str(tiny_model_folder(tmp_path))
    settings = {"model_init_kwargs": {"revision": "bogus"}}
    with pytest.raises(UserError, match="a revision applies to a model of a hub"):
        MutualAlignmentTrainer(model, config(tmp_path, **settings), train_dataset=ROWS)
    MutualAlignmentTrainer(model, config(tmp_path, model_init_kwargs={"revision": "main"}), train_dataset=ROWS)


def test_arguments_without_effect_are_refused(tmp_path):
    names = ("data_collator", "compute_loss_func", "compute_metrics", "formatting_func")
    for name in (*names, "preprocess_logits_for_metrics", "model_init"):
        with pytest.raises(UserError, match=f"{name} is not supported"):
            MutualAlignmentTrainer(tiny_model(), config(tmp_path), train_dataset=ROWS, **{name: print})
    with pytest.raises(UserError, match="leave `alignment` out"):
        MutualAlignmentTrainer(tiny_model(), config(tmp_path), train_dataset=ROWS, alignment=AlignmentArguments())


@pytest.mark.parametrize("name", ["chat_template_path", "eos_token", "activation_offloading"])
def test_settings_of_sfttrainer_are_refused_by_another_trainer(tmp_path, name):
    mixed = type("Mixed", (AlignmentMixin, Trainer), {})
    with pytest.raises(UserError, match=f"{name}='<s>' is read by SFTTrainer"):
        mixed(tiny_model(), config(tmp_path, **{name: "<s>"}), train_dataset=ROWS, processing_class=byte_tokenizer())


@cpu_only("it has nothing to offload from")
def test_offloading_needs_an_accelerator(tmp_path):
    with pytest.raises(UserError, match="activation_offloading=True needs an accelerator, and there is none"):
        trainer_with(tmp_path, activation_offloading=True)


def test_every_setting_of_sfttrainer_is_used_or_refused():
    """A new setting of TRL fails here until it is used or refused."""
    used = {"activation_offloading", "bf16", "chat_template_path", "dataset_num_proc", "eos_token", "eval_packing"}
    used |= {"gradient_checkpointing", "learning_rate", "logging_steps", "lr_scheduler_kwargs", "max_length"}
    used |= {"model_init_kwargs", "packing", "packing_strategy", "pad_token", "padding_free", "shuffle_dataset"}
    used |= {"torch_empty_cache_steps", "trust_remote_code"}
    assert set(SFTConfig.__annotations__) - {refusal.name for refusal in REFUSED_SETTINGS} - used == set()


def test_sampling_by_length_groups_similar_lengths(tmp_path):
    """Pairs of about one length come together; the lengths are those of the sequences, no column of the input."""

    def spread(strategy):  # type: ignore[no-untyped-def]
        many = Dataset.from_list(PAIRS * 8)
        options = {"train_sampling_strategy": strategy, "per_device_train_batch_size": 2, "max_steps": 1}
        trainer = trainer_with(tmp_path, dataset=many, **options)
        lengths = {pair["row"]: pair["length"] for pair in trainer.train_dataset}
        batches = [batch["pairs"]["row"].tolist() for batch in trainer.get_train_dataloader()]
        trainer.train()
        return np.mean([abs(lengths[a] - lengths[b]) for a, b in batches])

    assert spread("group_by_length") < 0.5 * spread("random")
    balanced = trainer_with(tmp_path, train_sampling_strategy="batch_rebalance")
    seen = [row for batch in balanced.get_train_dataloader() for row in batch["pairs"]["row"].tolist()]
    assert sorted(seen) == list(range(8))


def test_shuffle_dataset_shuffles(tmp_path):
    for settings in ({}, {"eval_packing": True}):
        trainer = trainer_with(tmp_path, eval_dataset=ROWS, shuffle_dataset=True, max_length=100, **settings)
        order = [pair["row"] for pair in trainer.train_dataset]
        assert order != list(range(8)) == sorted(order)
        assert trainer.train_dataset[0]["x_ids"] == byte_tokenizer()(PAIRS[order[0]]["prompt"]).input_ids


@pytest.mark.parametrize("added", [{"projection_dim": 8}, {"projection_dim": 0, "peft_config": LoraConfig(**LORA)}])
def test_an_optimizer_without_the_added_parameters_is_refused(tmp_path, added):
    model, peft = tiny_model(), {"peft_config": added.get("peft_config")}

    def trainer(width, **options):  # type: ignore[no-untyped-def]
        args, tokenizer = config(tmp_path, projection_dim=width), byte_tokenizer()
        return MutualAlignmentTrainer(model, args, train_dataset=ROWS, processing_class=tokenizer, **options)

    with pytest.raises(UserError, match=r"would not train .* optimizer_cls_and_kwargs"):
        trainer(added["projection_dim"], optimizers=(torch.optim.AdamW(model.parameters()), None), **peft)


def test_the_users_optimizer_is_used(tmp_path):
    """One that has all parameters, and one given by class, which trains the heads too."""
    model = tiny_model()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    args, tokenizer = config(tmp_path, projection_dim=0), byte_tokenizer()
    trainer = MutualAlignmentTrainer(
        model, args, train_dataset=ROWS, processing_class=tokenizer, optimizers=(own, None)
    )
    trainer.train()
    assert trainer.optimizer.optimizer is own
    trainer = MutualAlignmentTrainer(
        tiny_model(),
        config(tmp_path),
        train_dataset=ROWS,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}),
    )
    before = trainer._head.x.weight.detach().clone()
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
    assert not torch.equal(trainer._head.x.weight, before)


def test_unsuitable_tokenizers_are_refused(tmp_path):
    def with_tokenizer(tokenizer, model=None):  # type: ignore[no-untyped-def]
        MutualAlignmentTrainer(model or tiny_model(), config(tmp_path), train_dataset=ROWS, processing_class=tokenizer)

    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        with_tokenizer(byte_tokenizer(bos=None, eos=None))
    with pytest.raises(UserError, match=r"needs the token .* embeddings for 100 tokens only"):
        with_tokenizer(byte_tokenizer(), tiny_model(vocab=100))
    with pytest.raises(UserError, match="processing_class is needed"):
        with_tokenizer(None)
    with pytest.raises(UserError, match="must be a PreTrainedModel"):
        with_tokenizer(byte_tokenizer(), torch.nn.Linear(2, 2))


def test_plain_training_arguments_take_alignment_settings(tmp_path):
    """TrainingArguments with SFTTrainer's machinery: the settings come by themselves."""
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=DEVICE == "cpu", report_to=[], save_strategy="no")
    alignment = AlignmentArguments(
        directions="forward", semantic_weight=0.0, intentional_weight=0.0, structural_weight=0.0
    )
    trainer = MutualAlignmentTrainer(
        tiny_model(), args, train_dataset=ROWS, processing_class=byte_tokenizer(), alignment=alignment
    )
    assert trainer._head is None
    trainer.train()
