"""A step's gradient does not depend on its split into micro-batches and processes (float64)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

import torch
from main_align.errors import UserError
from main_align.loop.distributed import Processes
from main_align.training.distributed import gather_rows
from safetensors.torch import load_file

from tests.align import forked
from tests.align.tiny_models import cpu_only
from tests.align.training import step_gradients
from tests.align.training.step_gradients import trainer_of

ALL = {"duality_gap_weight": 0.4}
COUNTED = (
    "semantic",
    "intentional",
    "structural",
    "nll_y_given_x",
    "nll_x_given_y",
    "mi",
    "accuracy_x_to_y",
    "accuracy_y_to_x",
    "duality_gap",
    "synthetic_weight",
    "num_tokens",
)


def in_this_process(folder: Path, **settings):  # type: ignore[no-untyped-def]
    """(gradients, what was logged)."""
    evaluate = settings.pop("evaluate", False)
    trainer, gradients = trainer_of(str(folder), **settings)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "mi" in entry or "loss" in entry)
    return gradients.found, logged | (trainer.evaluate(trainer.train_dataset) if evaluate else {})


def in_processes(folder: Path, count: int, **settings):  # type: ignore[no-untyped-def]
    out = folder / f"processes-{count}.safetensors"
    forked.run_ranks(count, step_gradients.main, out, settings, folder=folder)
    return load_file(out), json.loads(out.with_suffix(".json").read_text())


def assert_same(got, wanted):  # type: ignore[no-untyped-def]
    (gradients, logged), (wanted_gradients, wanted_logged) = got, wanted
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-12 * scale, msg=name)
    norms = [name for name in wanted_logged if name.startswith("grad_norm_")]
    assert norms
    contributions = [name for name in wanted_logged if name.startswith("loss_")]
    assert contributions
    for name in (*COUNTED, *contributions, *norms):
        assert logged[name] == pytest.approx(wanted_logged[name], rel=1e-5), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):  # type: ignore[no-untyped-def]
    return in_this_process(tmp_path_factory.mktemp("whole"), per_device_train_batch_size=8, **ALL)


@pytest.mark.parametrize("steps", [2, 4])
def test_gradient_accumulation_does_not_change_the_gradient(tmp_path, whole, steps):
    settings = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
    got = in_this_process(tmp_path, **settings, **ALL)
    assert_same(got, whole)
    assert got[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-6)


def test_both_forwards_of_the_gradient_cache_have_the_same_dropout(tmp_path):
    """With LoRA dropout the embeddings that are contrasted are those that the gradient goes through."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "lora": True}
    trainer, _ = trainer_of(str(tmp_path), **settings)
    seen = []
    forward = trainer._hooked.forward

    def watched(*args, **options):  # type: ignore[no-untyped-def]
        output, states = forward(*args, **options)
        seen.append(output.embed_x.detach().clone())
        return output, states

    trainer._hooked.forward = watched
    trainer.train()
    assert len(seen) == 4
    for first, second in ((0, 2), (1, 3)):
        assert torch.equal(seen[first], seen[second])


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_contributions_of_a_log_line_add_up_to_its_loss(tmp_path, micro_batches, across):
    settings = {"gradient_accumulation_steps": micro_batches, "contrast_across_accumulation": across, **ALL}
    settings |= {"rows": 7, "per_device_train_batch_size": 4 // micro_batches, "max_steps": 4, "logging_steps": 2}
    trainer, _ = trainer_of(str(tmp_path), **settings)
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(lines) == 2
    for line in lines:
        contributions = {name: value for name, value in line.items() if name.startswith("loss_")}
        terms = {"forward", "reverse", "duality_gap", "semantic", "intentional", "structural"}
        assert contributions.keys() == {f"loss_{term}" for term in terms}
        assert sum(contributions.values()) == pytest.approx(line["loss"], rel=1e-6)


def test_contrast_within_micro_batches_is_weighted_by_pairs(tmp_path):
    """7 pairs as 4 and 3: the mean over pairs, not over micro-batches."""
    settings = {
        "rows": 7,
        "forward_weight": 0.0,
        "reverse_weight": 0.0,
        "intentional_weight": 0.0,
        "structural_weight": 0.0,
        "semantic_weight": 1.0,
    }
    settings |= {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "contrast_across_accumulation": False,
    }
    trainer, _ = trainer_of(str(tmp_path), **settings)
    batches = list(trainer.get_train_dataloader())
    assert [len(batch["pairs"]["row"]) for batch in batches] == [4, 3]
    trainer.train()
    logged = trainer.state.log_history[0]["loss"]
    alone = []
    for batch in batches:
        with torch.no_grad():
            trainer_of_one, _ = trainer_of(str(tmp_path), **settings)
            alone.append(float(trainer_of_one.compute_loss(trainer_of_one.model.train(), batch)))
    assert logged == pytest.approx((4 * alone[0] + 3 * alone[1]) / 7, rel=1e-6)


@pytest.mark.slow
@cpu_only("processes want a device each")
@pytest.mark.parametrize(("processes", "steps"), [(2, 1), (2, 2), (4, 1)])
def test_the_number_of_processes_does_not_change_the_gradient(tmp_path, whole, processes, steps):
    settings = {"per_device_train_batch_size": 8 // processes // steps, "gradient_accumulation_steps": steps}
    got = in_processes(tmp_path, processes, **settings, **ALL)
    assert_same(got, whole)
    assert got[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-6)


@pytest.mark.slow
@cpu_only("processes want a device each")
def test_processes_may_have_different_numbers_of_pairs(tmp_path):
    """And an evaluation in which a process sees a pair a second time, to have as many batches as the other."""
    wanted = in_this_process(tmp_path, rows=7, per_device_train_batch_size=7, evaluate=True, **ALL)
    uneven = {"per_device_train_batch_size": 4, "accelerator_config": {"even_batches": False}}
    got = in_processes(tmp_path, 2, rows=7, per_device_eval_batch_size=2, evaluate=True, **uneven, **ALL)
    assert_same(got, wanted)
    metrics = [
        name for name in wanted[1] if name.startswith("eval_") and not name.endswith(("runtime", "second", "time"))
    ]
    assert {"eval_loss", "eval_semantic", "eval_duality_gap"} <= set(metrics)
    for name in metrics:
        assert got[1][name] == pytest.approx(wanted[1][name], rel=1e-5), name


@pytest.mark.slow
@cpu_only("processes want a device each")
def test_a_stream_of_uneven_shards_gives_every_process_as_many_batches(tmp_path):
    stream = {"rows": 7, "shards": 2, "gradient_accumulation_steps": 2, "evaluate": True, **ALL}
    wanted = in_this_process(tmp_path, per_device_train_batch_size=2, per_device_eval_batch_size=2, **stream)
    got = in_processes(tmp_path, 2, per_device_train_batch_size=1, per_device_eval_batch_size=1, **stream)
    assert_same(got, wanted)
    assert got[1]["eval_loss"] == pytest.approx(wanted[1]["eval_loss"], rel=1e-5)


def refused_steps(folder: Path) -> None:
    """Train, and evaluate, on rows that accelerate deals out unevenly."""
    uneven = {"rows": 6, "accelerator_config": {"even_batches": False}}
    message = "6 rows unevenly: in batches of 2, some of the 2 processes"
    trainer, _ = trainer_of(str(folder), per_device_train_batch_size=2, **uneven)
    with pytest.raises(UserError, match=message):
        trainer.train()
    trainer, gradients = trainer_of(str(folder), per_device_eval_batch_size=2, per_device_train_batch_size=3, **uneven)
    trainer.args.eval_strategy = "epoch"
    for dataset in (trainer.train_dataset, {"held_out": trainer.train_dataset}):
        trainer.eval_dataset = dataset
        with pytest.raises(UserError, match=message):
            trainer.train()
    assert not gradients.found
    Processes(use_cpu=True).shutdown()


@pytest.mark.slow
@cpu_only("processes want a device each")
def test_uneven_batches_are_refused_before_the_first_step(tmp_path):
    forked.run_ranks(2, refused_steps, tmp_path / "trainer", folder=tmp_path)


@pytest.mark.slow
@cpu_only("processes want a device each")
@pytest.mark.parametrize("steps", [1, 2])
def test_sharding_by_fsdp2_does_not_change_the_gradient(tmp_path, whole, steps):
    settings = {"per_device_train_batch_size": 4 // steps, "gradient_accumulation_steps": steps}
    gradients, logged = in_processes(tmp_path, 2, sharded=True, gradient_checkpointing=steps == 1, **settings, **ALL)
    assert logged["sharded"]
    assert_same((gradients, logged), whole)


def gathered_steps() -> None:
    """Gather other numbers of rows in each step, none on one process in some."""
    processes = Processes(use_cpu=True)
    compiled = torch.compile(lambda rows: gather_rows(2 * rows).square().sum(), backend="aot_eager")
    for counts in ((3, 2), (0, 3), (4, 0), (1, 1), (0, 0)):
        rows = torch.randn(counts[processes.rank], 3, requires_grad=True)
        compiled(rows).backward()
        torch.testing.assert_close(rows.grad, 16 * rows)
    processes.shutdown()


@pytest.mark.slow
@cpu_only("processes want a device each")
def test_a_compiled_function_gathers_any_numbers_of_rows(tmp_path):
    forked.run_ranks(2, gathered_steps, folder=tmp_path)


def test_one_process_gathers_nothing():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
