"""trainer_with: a MutualAlignmentTrainer on a tiny model; one_step and untimed look at its results."""

from __future__ import annotations

from datasets import Dataset
from main_align.training import MutualAlignmentConfig, MutualAlignmentTrainer

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model
from tests.align.training.step_gradients import PAIRS

ROWS = Dataset.from_list(PAIRS)
TIMES = ("runtime", "per_second", "time")
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


def one_step(trainer):  # type: ignore[no-untyped-def]
    """Return the loss of the whole data set as one batch, and the gradients of the model's parameters."""
    model = trainer.model.train()
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return loss.detach(), gradients_of(model)


def gradients_of(model):  # type: ignore[no-untyped-def]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model.zero_grad()
    return found


def untimed(metrics, prefix="eval"):  # type: ignore[no-untyped-def]
    return {
        name.removeprefix(f"{prefix}_"): value
        for name, value in metrics.items()
        if not name.endswith(TIMES) and name != "epoch"
    }
