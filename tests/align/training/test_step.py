"""One training step against the definitions, computed one sequence at a time with all logits (reference_step.py)."""

from __future__ import annotations

import pytest

from tests.align.training import reference_step

pytest.importorskip("datasets")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from datasets import Dataset
from main_align.errors import UserError
from main_align.training import AlignmentArguments, AlignmentMixin
from main_align.training.model import hooks
from main_align.training.model.hooks import HookedForward
from main_align.training.model.projection import AlignmentHead
from main_align.training.terms import EMBEDDING_TERMS, LIKELIHOOD_TERMS
from peft import LoraConfig
from transformers import LlamaConfig, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutput

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model
from tests.align.training.step_gradients import PAIRS, trainer_of
from tests.align.training.trainers import LORA, ROWS, gradients_of, one_step, trainer_with

TEXTS = [(pair["prompt"], pair["completion"], pair.get("synthetic") or False) for pair in PAIRS]
GROUPS = torch.tensor([0, 1, 2, 2, 4, 5, 6, 7], device=DEVICE)


def only(**weights: float) -> dict[str, float]:
    """Return the settings with these weights, and 0 for all other terms."""
    return {f"{term}_weight": 0.0 for term in EMBEDDING_TERMS + LIKELIHOOD_TERMS} | weights


CASES = {
    "everything": {"duality_gap_weight": 0.4},
    "no_gap": {},
    "forward_only": {"directions": "forward"},
    "reverse_only": {"directions": "reverse"},
    "no_head": {"projection_dim": 0},
    "alpha": {"synthetic_weight_schedule": "constant", "synthetic_weight": 0.2},
    "plain_sft": {"directions": "forward", **only(forward_weight=1.0)},
    "weighted": only(forward_weight=0.7, reverse_weight=0.2),
    **{name: only(**{f"{name}_weight": 1.0}) for name in EMBEDDING_TERMS + LIKELIHOOD_TERMS},
    **{f"bound_{name}": only(intentional_weight=1.0) | {"mi_estimator": name} for name in ("infonce", "nwj", "dv")},
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_match_the_definitions(tmp_path, name):
    trainer, _ = trainer_of(str(tmp_path), per_device_train_batch_size=8, **CASES[name])
    loss, gradients = one_step(trainer)
    alignment = trainer.alignment
    wanted = reference_step.loss(
        trainer.model,
        trainer._head,
        trainer.processing_class,
        TEXTS,
        alignment,
        directions=alignment.directions,
        alpha=alignment.synthetic_weight,
        groups=GROUPS,
    )
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-6, atol=0)  # weights of tokens are float32
    wanted.backward()
    dense_gradients = gradients_of(trainer.model)
    assert gradients.keys() == dense_gradients.keys()
    for parameter, gradient in gradients.items():
        scale = float(dense_gradients[parameter].abs().max())
        torch.testing.assert_close(gradient, dense_gradients[parameter], rtol=0, atol=1e-6 * scale, msg=parameter)


def test_a_step_of_seed_pairs_is_not_scaled_by_the_synthetic_weight(tmp_path):
    settings = only(forward_weight=1.0, reverse_weight=1.0) | {
        "synthetic_weight_schedule": "constant",
        "synthetic_weight": 0.2,
    }
    trainer, _ = trainer_of(str(tmp_path), rows=1, **settings)
    loss, _ = one_step(trainer)
    wanted = reference_step.loss(trainer.model, None, trainer.processing_class, TEXTS[:1], trainer.alignment, alpha=0.2)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("exact", [False, True])
def test_logged_likelihoods_do_not_depend_on_the_loss_weights(tmp_path, exact):
    trainer, _ = trainer_of(str(tmp_path), per_device_train_batch_size=8, **only(forward_weight=1.0))
    (batch,) = trainer.get_train_dataloader()
    weights = torch.rand(8, 4, device=DEVICE) + 0.1
    with torch.no_grad():
        output, _ = trainer._hooked.forward(trainer.model, batch, weights=weights, differentiable_logp=exact)
        logits = trainer.model.lm_head(trainer._hooked.forward(trainer.model, batch, weights=None)[1])[0]
    pairs = batch["pairs"]
    each = logits[pairs["rows"]].log_softmax(-1).gather(1, pairs["targets"][:, None])[:, 0]
    wanted = each.new_zeros(32).index_add(0, pairs["segments"], each).view(8, 4)
    torch.testing.assert_close(output.logp.double(), wanted, rtol=1e-6, atol=1e-6)


def test_the_embedding_of_y_has_not_seen_x(tmp_path):
    """The embedding of a response is the same for two instructions."""
    trainer, _ = trainer_of(str(tmp_path), per_device_train_batch_size=8)
    (batch,) = trainer.get_train_dataloader()
    order = batch["pairs"]["row"].tolist()
    with torch.no_grad():
        output, _ = trainer._hooked.forward(trainer.model, batch, weights=None)
    greeting, again = (order.index(row) for row in (2, 3))
    torch.testing.assert_close(output.embed_y[greeting], output.embed_y[again], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(output.embed_x[greeting], output.embed_x[again])


@pytest.mark.parametrize("duality", [0.0, 0.3])
def test_no_logits_are_computed(tmp_path, duality):
    """The head's module receives one state; the loss reads its weight."""
    trainer, _ = trainer_of(str(tmp_path), per_device_train_batch_size=8, duality_gap_weight=duality)
    seen = []
    trainer.model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    one_step(trainer)
    assert [shape[1] for shape in seen] == [1]


def test_a_second_forward_runs_only_for_accumulated_contrast(tmp_path):
    def forwards(**settings):  # type: ignore[no-untyped-def]
        trainer, _ = trainer_of(str(tmp_path), **settings)
        calls = []
        trainer.model.model.register_forward_hook(lambda module, args, output: calls.append(1))
        trainer.train()
        return len(calls)

    eight, two = {"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 4}
    assert forwards(**eight) == 1
    assert forwards(**two, gradient_accumulation_steps=2) == 4
    assert forwards(**two, gradient_accumulation_steps=2, contrast_across_accumulation=False) == 2
    assert forwards(**two, gradient_accumulation_steps=2, **only(forward_weight=1.0, reverse_weight=1.0)) == 2


def test_a_batch_without_scored_tokens_gives_zero_in_the_graph(tmp_path):
    trainer, _ = trainer_of(
        str(tmp_path), per_device_train_batch_size=8, **only(forward_weight=1.0), directions="forward"
    )
    dataset = [dict(pair, y_mask=[0] * len(pair["y_mask"])) for pair in trainer.train_dataset]
    batch = trainer._prepare_inputs(trainer.data_collator(dataset))
    assert not len(batch["pairs"]["rows"])
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    assert float(loss) == 0
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert gradients
    assert not any(bool(g.any()) for g in gradients)


def test_masked_tokens_of_y_are_not_scored(tmp_path):
    trainer, _ = trainer_of(str(tmp_path), **only(forward_weight=1.0), directions="forward")
    pair = dict(trainer.train_dataset[0])
    pair["y_mask"] = [0, 0, 1] + [1] * (len(pair["y_mask"]) - 3)
    whole, part = (trainer.data_collator([p])["pairs"] for p in (trainer.train_dataset[0], pair))
    assert torch.equal(whole["targets"][2:], part["targets"])
    assert int(part["tokens"].sum()) == int(whole["tokens"].sum()) - 2


def test_a_single_pair_has_no_contrast_and_warns_once(tmp_path, caplog):
    trainer, _ = trainer_of(str(tmp_path), rows=1, per_device_train_batch_size=1)
    (batch,) = trainer.get_train_dataloader()
    for _ in range(2):
        loss = trainer.compute_loss(trainer.model.train(), batch)
    assert [r.message for r in caplog.records if "a batch of one pair" in r.message] != []
    assert sum("a batch of one pair" in r.message for r in caplog.records) == 1
    likelihood = trainer_of(str(tmp_path), rows=1, **only(forward_weight=1.0, reverse_weight=1.0))[0]
    torch.testing.assert_close(loss, likelihood.compute_loss(likelihood.model.train(), batch))


def test_a_loss_that_is_not_finite_stops_and_names_term_and_row(tmp_path):
    trainer, _ = trainer_of(str(tmp_path), per_device_train_batch_size=8)
    row = 5
    (batch,) = trainer.get_train_dataloader()
    place = batch["pairs"]["row"].tolist().index(row)
    bounds = batch["cu_seq_lens_q"][2 * place : 2 * place + 2]

    def poison(module, args, output):  # type: ignore[no-untyped-def]
        output = output.clone()
        output[0, bounds[0] + 3] = torch.nan
        return output

    trainer.model.model.embed_tokens.register_forward_hook(poison)
    with pytest.raises(UserError, match=rf"step 1: .*not finite: .*likelihood.*in rows {row} of"):
        trainer.compute_loss(trainer.model.train(), batch)


@pytest.mark.parametrize(("strategy", "measured"), [("no", []), ("epoch", [2, 4]), ("steps", [3]), ("first", [1, 3])])
def test_gradient_norms_are_measured_only_for_log_lines(tmp_path, monkeypatch, strategy, measured):
    """They cost a second backward of the heads."""
    settings = {"logging_strategy": "steps" if strategy == "first" else strategy, "logging_steps": 3}
    settings |= {"max_steps": 4, "logging_first_step": strategy == "first"}
    trainer, _ = trainer_of(str(tmp_path), per_device_train_batch_size=4, **settings)
    steps = []
    watched = trainer._monitor.measure_gradients

    def measure(*args):  # type: ignore[no-untyped-def]
        steps.append(trainer.state.global_step + 1)
        watched(*args)

    monkeypatch.setattr(trainer._monitor, "measure_gradients", measure)
    trainer.train()
    assert steps == measured
    logged = [entry["step"] for entry in trainer.state.log_history if "grad_norm_forward" in entry]
    assert logged == measured


class Toy(torch.nn.Module):
    """The parts of a causal language model that the hooks need; compiling a whole model takes half a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.base_model = LlamaConfig(), torch.nn.Sequential(torch.nn.Embedding(259, 8), Backbone())
        self.lm_head = torch.nn.Linear(8, 259)

    def get_decoder(self) -> torch.nn.Module:
        return self.base_model

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.lm_head

    def forward(self, input_ids, **_):  # type: ignore[no-untyped-def]
        return self.lm_head(self.base_model(input_ids).last_hidden_state[:, -1:])


class Backbone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, hidden):  # type: ignore[no-untyped-def]
        return BaseModelOutput(self.layer(hidden).tanh())


def test_a_compiled_model_gives_the_same_gradients_in_one_backward(tmp_path):
    """A compiled backward frees its buffers, so measuring gradients before the step's backward must not run it."""
    trainer, _ = trainer_of(str(tmp_path), double=False, per_device_train_batch_size=8)
    (batch,) = trainer.get_train_dataloader()
    torch.manual_seed(0)
    model, head = Toy().to(DEVICE), AlignmentHead(8, 4).to(DEVICE)
    wrapped, found = HookedForward(model, head), []
    for run in (model, torch.compile(model, backend="aot_eager")):
        output, states = wrapped.forward(run, batch, weights=torch.ones(8, 4, device=DEVICE))
        assert not any("Compiled" in type(each.grad_fn).__name__ for each in (output.lm_loss, output.embed_x))
        loss = output.lm_loss + output.embed_x.square().sum()
        (measured,) = torch.autograd.grad(loss, states, retain_graph=True)
        loss.backward()
        found.append({"loss": loss.detach(), "measured": measured, **gradients_of(model)})
    assert len(found[0]) == 2 + 5
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_plain_trainer_with_the_mixin_lowers_its_loss(tmp_path, bf16, checkpointing):
    class MyTrainer(AlignmentMixin, Trainer):
        pass

    tokenizer = byte_tokenizer()
    args = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=12,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=2,
        report_to=[],
        save_strategy="no",
        use_cpu=DEVICE == "cpu",
        bf16=bf16,
        gradient_checkpointing=checkpointing,
        disable_tqdm=True,
    )
    trainer = MyTrainer(
        tiny_model(vocab=len(tokenizer)),
        args,
        train_dataset=Dataset.from_list(PAIRS),
        eval_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
        alignment=AlignmentArguments(projection_dim=8),
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "nll_y_given_x" in entry]
    for name in ("nll_y_given_x", "nll_x_given_y"):
        assert history[-1][name] < 0.7 * history[0][name]
    assert {"mi", "accuracy_x_to_y", "accuracy_y_to_x", "grad_norm_forward", "grad_norm_semantic"} <= history[0].keys()
    result = trainer.evaluate()
    assert result["eval_nll_y_given_x"] < history[0]["nll_y_given_x"]
    assert {"eval_loss", "eval_accuracy_x_to_y"} <= result.keys()


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_head_runs_in_the_dtype_of_autocast(tmp_path, monkeypatch, wrapped):
    """accelerate's autocast surrounds the outermost forward, which ends before the hooks of a model without wrapper."""
    seen = []
    original = hooks.linear_cross_entropy

    def watched(hidden, weight, *args, **options):  # type: ignore[no-untyped-def]
        seen.append((torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else None, weight.dtype))
        return original(hidden, weight, *args, **options)

    monkeypatch.setattr(hooks, "linear_cross_entropy", watched)
    for bf16 in (True, False):
        peft_config = LoraConfig(**LORA) if wrapped else None
        trainer = trainer_with(tmp_path, peft_config=peft_config, bf16=bf16, max_steps=1)
        trainer.train()
        trainer.evaluate(ROWS)
    assert seen == [(torch.bfloat16, torch.float32)] * 2 + [(None, torch.float32)] * 2


@pytest.mark.parametrize("batch", [2, 8])
def test_neftunes_noise_does_not_depend_on_the_batch(tmp_path, batch):
    """Each sequence of L tokens has that of an unpacked one, alpha / sqrt(L D)."""
    trainer = trainer_with(tmp_path, per_device_train_batch_size=batch, neftune_noise_alpha=5.0, max_steps=1)
    seen = []
    forward = trainer._hooked.forward

    def watched(model, inputs, **options):  # type: ignore[no-untyped-def]
        lengths = inputs["cu_seq_lens_q"].diff().tolist()

        def record(embeddings, args, output):  # type: ignore[no-untyped-def]
            noise = output - torch.nn.functional.embedding(args[0], embeddings.weight)
            bounds = [5.0 / (length * output.shape[-1]) ** 0.5 for length in lengths]
            parts = noise[0].split(lengths)
            seen.extend(float(part.abs().max()) / bound for part, bound in zip(parts, bounds, strict=True))

        handle = trainer._base.get_input_embeddings().register_forward_hook(record)
        result = forward(model, inputs, **options)
        handle.remove()
        return result

    trainer._hooked.forward = watched
    trainer.train()
    assert len(seen) == 2 * batch
    assert all(0.9 < ratio <= 1 + 1e-5 for ratio in seen)
    seen.clear()
    trainer.evaluate(ROWS)
    assert set(seen) == {0.0}
