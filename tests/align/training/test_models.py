"""PEFT, tied embeddings, trained heads and checkpoints; models that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from datasets import Dataset, IterableDataset
from main_align.errors import UserError
from main_align.training import AlignmentMixin, MutualAlignmentConfig, MutualAlignmentTrainer
from main_align.training.model.checkpoint import FILE
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments
from trl import SFTTrainer

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model, tiny_model_folder
from tests.align.training.step_gradients import PAIRS, trainer_of
from tests.align.training.test_step import gradients_of, one_step

ROWS = Dataset.from_list(PAIRS)
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def config(folder, **settings):  # type: ignore[no-untyped-def]
    defaults = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "projection_dim": 8}
    defaults |= {"logging_steps": 1, "report_to": [], "bf16": False, "use_cpu": DEVICE == "cpu", "disable_tqdm": True}
    return MutualAlignmentConfig(output_dir=str(folder), **(defaults | {"save_strategy": "no"} | settings))


def trainer_with(folder, model=None, dataset=ROWS, peft_config=None, eval_dataset=None, tokenizer=None, **settings):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer or byte_tokenizer()
    return MutualAlignmentTrainer(
        tiny_model(vocab=len(tokenizer)) if model is None else model,
        config(folder, **settings),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def test_a_model_named_by_a_path_brings_its_tokenizer(tmp_path):
    folder = tiny_model_folder(tmp_path)
    trainer = MutualAlignmentTrainer(str(folder), config(tmp_path / "out"), train_dataset=ROWS)
    assert trainer.model.dtype == torch.float32
    trainer.train()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"the model '.*empty' cannot be loaded"):
        MutualAlignmentTrainer(str(tmp_path / "empty"), config(tmp_path), train_dataset=ROWS)


def test_mistral_trains_with_its_sliding_window(tmp_path):
    trainer = trainer_with(tmp_path, tiny_model("mistral"))
    trainer.train()
    assert len(trainer.state.log_history) == 3


def test_a_mixture_of_experts_trains_and_warns_about_its_load_balancing_loss(tmp_path, caplog):
    sizes = {"vocab_size": 259, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "max_position_embeddings": 512,
    }
    model = MixtralForCausalLM(MixtralConfig(**sizes)).to(DEVICE)
    trainer_with(tmp_path, model, max_steps=1).train()
    assert sum("load-balancing loss" in record.message for record in caplog.records) == 1
    assert not model.config.output_router_logits
    trainer_with(tmp_path, model, max_steps=1, router_aux_loss_coef=0.0)
    assert sum("load-balancing loss" in record.message for record in caplog.records) == 1


def test_only_adapters_and_heads_are_trained(tmp_path):
    model = tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = trainer_with(tmp_path, model, peft_config=LoraConfig(**LORA), gradient_checkpointing=True)
    trainer.train()
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "alignment_head" in name for name in trained)
    for name, parameter in trainer.model.get_base_model().named_parameters():
        if (plain := name.replace(".base_layer", "")) in before:
            assert torch.equal(parameter, before[plain]), name
    assert any(p.abs().sum() > 0 for n, p in trainer.model.named_parameters() if "lora_B" in n)


def test_a_peft_model_keeps_its_adapter(tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(**LORA), adapter_name="to_y")
    model.add_adapter("to_x", LoraConfig(**LORA))
    model.set_adapter("to_y")
    trainer = trainer_with(tmp_path, model, directions="forward")
    trainer.train()
    changed = {name: bool(p.abs().sum() > 0) for name, p in trainer.model.named_parameters() if "lora_B" in name}
    assert all(value == (".to_y." in name) for name, value in changed.items())


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_get_both_gradients(tmp_path, tied):
    """The gradient of a tied matrix is the sum of those of its two uses."""
    found = {}
    for tie in (False, True):
        model = tiny_model(tie_word_embeddings=tie).double()
        if not tie:
            model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
        trainer, _ = trainer_of(str(tmp_path), per_device_train_batch_size=8)
        trainer = trainer_with(tmp_path, model, per_device_train_batch_size=8)
        found[tie] = one_step(trainer)
    (loss, apart), (tied_loss, together) = found[False], found[True]
    torch.testing.assert_close(loss, tied_loss)
    both = apart["model.embed_tokens.weight"] + apart["lm_head.weight"]
    torch.testing.assert_close(together["model.embed_tokens.weight"], both, rtol=0, atol=1e-10)


def test_a_head_named_in_modules_to_save_is_trained(tmp_path):
    peft = LoraConfig(**LORA, modules_to_save=["lm_head"])
    trainer = trainer_with(tmp_path, peft_config=peft)
    before = trainer.model.get_base_model().lm_head.weight.detach().clone()
    trainer.train()
    head = trainer.model.get_base_model().lm_head
    assert not torch.equal(head.weight, before)
    assert torch.equal(head.original_module.weight, before)


def test_an_adapter_on_the_head_is_refused(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    refusal = r"adapter on lm_head is not supported.*modules_to_save"
    with pytest.raises(UserError, match=refusal):
        trainer_with(tmp_path, get_peft_model(tiny_model(), lora))
    mixed = type("Mixed", (AlignmentMixin, Trainer), {})
    args = TrainingArguments(str(tmp_path), use_cpu=DEVICE == "cpu", report_to=[])
    with pytest.raises(UserError, match=refusal):
        mixed(get_peft_model(tiny_model(), lora), args, train_dataset=ROWS, processing_class=byte_tokenizer())
    with pytest.raises(ValueError, match="lm_head"):
        trainer_with(tmp_path, peft_config=lora)


@pytest.mark.parametrize(("mark", "remedy"), [("zero3", "use ZeRO-2, or FSDP2"), ("DTensor", "outermost FSDP unit")])
def test_a_sharded_head_is_refused(tmp_path, monkeypatch, mark, remedy):
    """The marks that DeepSpeed ZeRO-3 and an FSDP unit of its own leave on the weight, without either library."""
    trainer = trainer_with(tmp_path)
    (batch, *_) = trainer.get_train_dataloader()
    weight = trainer.model.lm_head.weight
    if mark == "zero3":
        weight.ds_id = 1
    else:
        part = type("DTensor", (torch.nn.Parameter,), {})
        trainer.model.lm_head.weight = part(weight.data)
    with pytest.raises(UserError, match=remedy):
        trainer.compute_loss(trainer.model.train(), batch)


def test_the_saved_model_is_ordinary_and_has_the_heads_in_another_file(tmp_path):
    trainer = trainer_with(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    names = load_file(folder / "model.safetensors").keys()
    assert not any("alignment_head" in name for name in names)
    model, info = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
    head = load_file(folder / FILE)
    assert torch.equal(head["head.x.weight"], trainer._head.x.weight.cpu())
    assert torch.equal(model.lm_head.weight, trainer.model.lm_head.weight.cpu())


@pytest.mark.parametrize("base", [SFTTrainer, Trainer])
def test_the_model_card_names_the_method_and_its_terms(tmp_path, base):
    mixed = MutualAlignmentTrainer if base is SFTTrainer else type("Mixed", (AlignmentMixin, Trainer), {})
    args = config(tmp_path, semantic_weight=0.25, intentional_weight=0.0, directions="forward")
    trainer = mixed(tiny_model(), args, train_dataset=ROWS, processing_class=byte_tokenizer())
    for _ in range(2):
        trainer.create_model_card(model_name="mine")
    card = (tmp_path / "README.md").read_text()
    assert card.count("## Mutual alignment") == 1
    assert "arxiv.org/abs/2504.12913" in card
    assert "| `semantic` | 0.25 |" in card
    assert "| `forward` | 1 | -log p(y" in card
    assert not any(f"`{name}`" in card for name in ("reverse", "intentional", "duality_gap"))
    if base is SFTTrainer:
        assert "a method introduced in [Mutual Alignment Is Necessary" in card


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, lora):
    def run(folder, steps, resume=None):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        settings = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "max_steps": steps}
        trainer = trainer_with(folder, peft_config=LoraConfig(**LORA) if lora else None, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    wanted = run(tmp_path / "whole", 4)
    run(tmp_path / "halves", 2)
    resumed = run(tmp_path / "halves", 4, str(tmp_path / "halves" / "checkpoint-2"))
    assert any("alignment_head" in name for name in wanted)
    for name, parameter in wanted.items():
        torch.testing.assert_close(resumed[name], parameter, rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("lora", [False, True])
def test_the_best_model_is_restored_with_its_heads_and_means(tmp_path, lora):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_with(tmp_path, peft_config=LoraConfig(**LORA) if lora else None, eval_dataset=ROWS, **settings)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / "checkpoint-1")  # the loss falls, so the first one has the greatest
    wanted, last = (load_file(Path(folder) / FILE) for folder in (best, tmp_path / "checkpoint-3"))
    for name, weight in trainer._head.state_dict().items():
        assert torch.equal(weight.cpu(), wanted[f"head.{name}"])
        assert not torch.equal(weight.cpu(), last[f"head.{name}"])
    assert torch.equal(trainer._synthetic_weight.means.cpu(), wanted["synthetic_weight.means"])
    assert not torch.equal(trainer._synthetic_weight.means.cpu(), last["synthetic_weight.means"])


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    trainer = trainer_with(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    with pytest.raises(UserError, match=r"holds projection heads of other shapes.*projection_dim"):
        trainer_with(tmp_path, projection_dim=4).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-1" / FILE).unlink()
    with pytest.raises(UserError, match="is missing: this checkpoint was not written by"):
        trainer_with(tmp_path).train(resume_from_checkpoint=True)


def test_the_adapter_that_is_saved_loads_on_the_plain_model(tmp_path):
    trainer = trainer_with(tmp_path, peft_config=LoraConfig(**LORA))
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    ids = torch.randint(3, 200, (1, 12), device=DEVICE)
    plain = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, trainer.model.eval()(ids, use_cache=False).logits)
    assert (tmp_path / "adapter" / FILE).is_file()


def test_the_model_generates_between_steps_and_afterwards(tmp_path):
    trainer = trainer_with(tmp_path)
    trainer.train()
    ids = torch.randint(3, 200, (1, 5), device=DEVICE)
    text = trainer.model.eval().generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert text.shape == (1, 9)


def test_packing_keeps_pairs_whole(tmp_path):
    trainer = trainer_with(tmp_path, packing=True, max_length=100, per_device_train_batch_size=1, max_steps=1)
    seen = []
    for batch in trainer.get_train_dataloader():
        seen += batch["pairs"]["row"].tolist()
        assert batch["input_ids"].shape[1] <= 2 * 100 or len(batch["pairs"]["row"]) == 1
    assert sorted(seen) == list(range(8))
    assert len(trainer.train_dataset) < 8
    trainer.train()
    for strategy in ("wrapped", "bfd_split"):
        with pytest.raises(UserError, match="cuts samples"):
            trainer_with(tmp_path, packing=True, packing_strategy=strategy)


def test_a_stream_can_be_trained_on(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(PAIRS))
    trainer = trainer_with(tmp_path, dataset=stream, per_device_train_batch_size=2, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3
    with pytest.raises(UserError, match="not a stream"):
        trainer_with(tmp_path, dataset=stream, packing=True, max_steps=3)


def test_a_shuffled_stream_with_workers_gives_all_rows_in_another_order_every_epoch(tmp_path):
    stream = ROWS.to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=8)
    settings = {"per_device_train_batch_size": 2, "dataloader_num_workers": 2, "max_steps": 8}
    trainer, seen = trainer_with(tmp_path, dataset=stream, **settings), []
    reading = trainer._hooked.forward

    def watched(model, batch, **options):  # type: ignore[no-untyped-def]
        seen.append(batch["pairs"]["targets"].tolist())
        return reading(model, batch, **options)

    trainer._hooked.forward = watched
    trainer.train()
    assert [entry["epoch"] for entry in trainer.state.log_history if "loss" in entry][3] == 0.5
    texts = byte_tokenizer().batch_decode(seen)
    for epoch in (texts[:4], texts[4:]):
        assert all(sum(pair["prompt"] in text for text in epoch) == 1 for pair in PAIRS)
    assert texts[:4] != texts[4:]


def test_the_synthetic_weight_is_logged_if_there_are_synthetic_pairs(tmp_path):
    trainer = trainer_with(tmp_path)
    trainer.train()
    seed_loss, written = trainer._synthetic_weight.means.tolist()
    assert trainer.synthetic_weight == pytest.approx(seed_loss / (seed_loss + written))
    assert "synthetic_weight" in trainer.state.log_history[0]
    only_seeds = Dataset.from_list([{k: pair[k] for k in ("prompt", "completion")} for pair in PAIRS])
    trainer = trainer_with(tmp_path, dataset=only_seeds)
    trainer.train()
    assert "synthetic_weight" not in trainer.state.log_history[0]


def test_another_data_set_can_be_evaluated(tmp_path):
    trainer = trainer_with(tmp_path)
    result = trainer.evaluate(Dataset.from_list(PAIRS[:3]))
    assert result["eval_nll_y_given_x"] > 0
    assert gradients_of(trainer.model) == {}
