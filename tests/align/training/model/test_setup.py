"""Architectures, PEFT, tied embeddings and trained heads; models that are refused."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from main_align.errors import UserError
from main_align.evaluation import AlignmentEvaluator
from main_align.models.projection_heads import AlignmentHead
from main_align.training import AlignmentMixin, MutualAlignmentTrainer
from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM, Trainer, TrainingArguments

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model, tiny_model_folder
from tests.align.training.trainers import LORA, ROWS, config, one_step, trainer_with


def test_a_model_named_by_a_path_brings_its_tokenizer(tmp_path):
    folder = tiny_model_folder(tmp_path)
    trainer = MutualAlignmentTrainer(str(folder), config(tmp_path / "out"), train_dataset=ROWS)
    assert trainer.model.dtype == torch.float32
    trainer.train()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"the model '.*empty' cannot be loaded"):
        MutualAlignmentTrainer(str(tmp_path / "empty"), config(tmp_path), train_dataset=ROWS)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_model_named_by_a_path_is_loaded_with_its_options(tmp_path, caplog, name):
    args = config(tmp_path / "out", model_init_kwargs={name: "bfloat16"})
    trainer = MutualAlignmentTrainer(str(tiny_model_folder(tmp_path)), args, train_dataset=ROWS)
    assert trainer.model.dtype == torch.bfloat16
    assert args.model_init_kwargs == {name: "bfloat16"}
    assert "will be ignored" not in caplog.text  # as SFTTrainer says of options that come with a loaded model


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


def test_a_model_that_calls_its_decoder_itself_is_trained(tmp_path):
    """OPT's forward does not call its base model, a shell around the decoder."""
    sizes = {"vocab_size": 259, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_attention_heads": 2}
    config = OPTConfig(**sizes, num_hidden_layers=1, max_position_embeddings=512, dropout=0.0)
    trainer = trainer_with(tmp_path, OPTForCausalLM(config).to(DEVICE), eval_dataset=ROWS)
    before = trainer.evaluate()["eval_nll_y_given_x"]
    trainer.train()
    assert trainer.evaluate()["eval_nll_y_given_x"] < before


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


def test_the_head_is_trained_on_a_frozen_backbone(tmp_path):
    model = tiny_model()
    model.model.requires_grad_(False)
    trainer = trainer_with(tmp_path, model, gradient_checkpointing=False)
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert second["loss_forward"] < first["loss_forward"]
    assert "grad_norm_forward" not in first  # no gradient reaches the backbone's states


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
    if mark == "zero3":  # a model given by name is sharded, and its weights empty, when it is loaded
        weight.data = weight.data.new_empty(0)
        with pytest.raises(UserError, match=remedy):
            trainer_with(tmp_path, trainer.model)


def test_the_model_generates_between_steps_and_afterwards(tmp_path):
    trainer = trainer_with(tmp_path)
    trainer.train()
    ids = torch.randint(3, 200, (1, 5), device=DEVICE)
    text = trainer.model.eval().generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert text.shape == (1, 9)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_refused(tmp_path, kind):
    """They would move every position of a packed row, or be left out of it."""
    virtual = kind(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UserError, match=f"{kind.__name__} is not supported: it puts virtual tokens"):
        trainer_with(tmp_path, projection_dim=0, peft_config=virtual)
    adapted = get_peft_model(tiny_model(), virtual)
    with pytest.raises(UserError, match=f"{kind.__name__} is not supported: it puts virtual tokens"):
        trainer_with(tmp_path, adapted, projection_dim=0)
    with pytest.raises(UserError, match=f"{kind.__name__} is not supported: it puts virtual tokens"):
        AlignmentEvaluator(ROWS)(adapted, byte_tokenizer())


def test_an_activated_lora_is_refused(tmp_path):
    """It would be active from the last invocation in a packed row on, which is in another sequence."""
    activated = LoraConfig(**LORA, task_type="CAUSAL_LM", alora_invocation_tokens=[5])
    with pytest.raises(UserError, match="alora_invocation_tokens is not supported: an activated LoRA"):
        trainer_with(tmp_path, peft_config=activated)
    with pytest.raises(UserError, match="alora_invocation_tokens is not supported: an activated LoRA"):
        AlignmentEvaluator(ROWS)(get_peft_model(tiny_model(), activated), byte_tokenizer())


def test_an_adapter_that_skips_the_hooks_is_refused(tmp_path):
    trainer = trainer_with(tmp_path, peft_config=AdaLoraConfig(task_type="CAUSAL_LM", total_step=2))
    with pytest.raises(UserError, match=r"runs the model without its forward hooks.*such as LoraConfig"):
        trainer.train()


def test_a_second_trainer_does_not_train_the_heads_of_the_first(tmp_path):
    model, names = tiny_model(), []
    for dim in (8, 0):
        trainer = trainer_with(tmp_path, model, projection_dim=dim)
        names.append({name for name, _ in trainer.model.named_parameters() if "alignment_head" in name})
    assert names[0]
    assert not names[1]


@pytest.mark.parametrize("lora", [False, True])
def test_a_trained_model_is_as_it_was_but_for_its_weights(tmp_path, lora):
    """Its state dict loads into the same model, and another trainer trains it. The trainer keeps the heads."""
    model = tiny_model()
    before = set(model.state_dict())
    trainer = trainer_with(tmp_path, model, peft_config=LoraConfig(**LORA) if lora else None)
    heads = [trainer.alignment_head.x.weight.detach().clone()]
    for _ in range(2):  # the second training goes on with the same heads
        trainer.train()
        heads.append(trainer._head.x.weight.detach().clone())
        assert not torch.equal(*heads[-2:])
    assert trainer.evaluate(ROWS)["eval_semantic"] > 0
    trainer.save_model(tmp_path / "saved")
    assert torch.equal(AlignmentHead.from_pretrained(tmp_path / "saved").x.weight, heads[-1].cpu())
    trained = trainer.model.merge_and_unload() if lora else model
    assert set(trained.state_dict()) == before
    assert not trained._keys_to_ignore_on_save
    tiny_model().load_state_dict(trained.state_dict())
