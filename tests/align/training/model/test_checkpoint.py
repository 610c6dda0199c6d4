"""Saved models are ordinary, and resumed runs equal uninterrupted ones, heads included."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from main_align.errors import UserError
from main_align.training.model.checkpoint import FILE
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LRScheduler
from transformers import LlamaForCausalLM, Trainer

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model
from tests.align.training.trainers import LORA, ROWS, trainer_with, untimed


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


@pytest.mark.parametrize("lora", [None, torch.float32, torch.bfloat16])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, lora):
    def run(folder, steps, resume=None):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        settings = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "max_steps": steps}
        trainer = trainer_with(folder, peft_config=LoraConfig(**LORA) if lora else None, **settings)
        if lora:
            for parameter in (p for p in trainer.model.parameters() if p.requires_grad):
                parameter.data = parameter.data.to(lora)  # TRL does this with bfloat16 if the model is quantised
        trainer.train(resume_from_checkpoint=resume)
        log = [untimed(entry) for entry in trainer.state.log_history if "loss" in entry]
        modules = {"model": trainer.model, "head": trainer._head}
        parameters = {f"{key}.{name}": p for key, each in modules.items() for name, p in each.named_parameters()}
        return {name: p.detach().clone() for name, p in parameters.items()}, log

    wanted, log = run(tmp_path / "whole", 4)
    run(tmp_path / "halves", 2)
    resumed, resumed_log = run(tmp_path / "halves", 4, str(tmp_path / "halves" / "checkpoint-2"))
    assert resumed_log == [pytest.approx(entry, rel=1e-6) for entry in log]  # `num_tokens` too
    for name, parameter in wanted.items():
        torch.testing.assert_close(resumed[name], parameter, rtol=0, atol=1e-7, msg=name)


def test_a_run_resumed_by_deepspeed_has_means_and_token_count(tmp_path, monkeypatch):
    """DeepSpeed loads the model itself, without the method that other runs resume with."""
    monkeypatch.setattr("transformers.trainer.DeepSpeedSchedulerWrapper", LRScheduler, raising=False)
    first, second = (trainer_with(tmp_path, save_strategy="steps", save_steps=2) for _ in range(2))
    first.train()
    second.create_optimizer_and_scheduler(2)
    second.is_deepspeed_enabled = True
    second._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-2"))
    assert second._monitor.num_tokens == first._monitor.num_tokens > 0
    assert torch.equal(second._synthetic_weight.means, first._synthetic_weight.means.cpu())


def test_no_head_is_called_missing_when_a_run_resumes(tmp_path, monkeypatch):
    missing: list[str] = []
    monkeypatch.setattr(Trainer, "_issue_warnings_after_load", lambda self, result: missing.extend(result.missing_keys))
    for steps in (1, 2):
        model = tiny_model(vocab=len(byte_tokenizer()), tie_word_embeddings=True)
        trainer = trainer_with(tmp_path, model, save_strategy="steps", save_steps=1, max_steps=steps)
        trainer.train(resume_from_checkpoint=steps > 1)
    assert missing == ["lm_head.weight"]


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


@pytest.mark.parametrize("names", [["trained"], ["default", "trained"]])
def test_the_best_adapter_is_restored_by_its_name(tmp_path, names):
    """transformers reads the adapter `default` only, also into an adapter of another name."""
    model = get_peft_model(tiny_model(), LoraConfig(**LORA), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, LoraConfig(**LORA))
    model.set_adapter("trained")
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_with(tmp_path, model, eval_dataset=ROWS, **settings)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / "checkpoint-1")  # the loss falls, so the first one has the greatest
    saved = load_file(Path(best) / "trained" / "adapter_model.safetensors")
    restored = get_peft_model_state_dict(trainer.model, adapter_name="trained")
    assert all(torch.equal(restored[name].cpu(), weight) for name, weight in saved.items())
    assert trainer.model.active_adapters == ["trained"]


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    trainer = trainer_with(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    with pytest.raises(UserError, match=r"holds projection heads of other shapes.*projection_dim"):
        trainer_with(tmp_path, projection_dim=4).train(resume_from_checkpoint=True)
    with pytest.raises(UserError, match=r"than this run's \(none\).*projection_dim"):
        trainer_with(tmp_path, projection_dim=0).train(resume_from_checkpoint=True)
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
