"""The whole loop: on a tiny model, killed and resumed, in two processes, and on a real model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from main_align.cli.app import app
from main_align.errors import UserError
from main_align.loop import LoopConfig, MutualAlignmentLoop, read_config
from main_align.loop.pairs import read_generations
from main_align.loop.plan import make_plan
from main_align.loop.report import draw
from main_align.loop.run_dir import RunDir
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.align import forked
from tests.align.loop import run_and_kill
from tests.align.tiny_models import byte_tokenizer, cpu_only, tiny_model, tiny_model_folder

ROOT = Path(__file__).parents[3]
TIMES = ("seconds", "stage_seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with a model, seed pairs, evaluation pairs and unpaired responses."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("loop")
    tiny_model_folder(folder, initializer_range=0.02).rename(folder / "model")
    seeds = [{"id": f"s{n}", "instruction": f"say {n}", "response": f"it is {n * n}"} for n in range(8)]
    seeds[5] |= {"instruction": ""}
    write_lines(folder / "seeds.jsonl", seeds)
    write_lines(folder / "heldout.jsonl", [{"prompt": "say 9", "completion": "it is 81"}])
    write_lines(folder / "new.jsonl", [{"id": f"u{n}", "response": f"that makes {n}"} for n in range(9)])
    return folder


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(ground: Path, output_dir: Path, **changes: Any) -> LoopConfig:
    settings: dict[str, Any] = {
        "seed_pairs": str(ground / "seeds.jsonl"),
        "unpaired_responses": str(ground / "new.jsonl"),
        "eval_pairs": str(ground / "heldout.jsonl"),
        "output_dir": str(output_dir),
        "model": str(ground / "model"),
        "rounds": 1,
        "lora_r": 2,
        "max_length": 200,
        "max_new_tokens": 60,
        "batch_tokens": 300,
        "training": {"per_device_train_batch_size": 4, "learning_rate": 0.02},
    }
    return LoopConfig(**settings | changes)


@pytest.fixture(scope="module")
def logged(ground: Path) -> list[str]:
    """Run the loop in `ground`/whole without interruption, and return its log."""
    lines: list[str] = []
    MutualAlignmentLoop(config_of(ground, ground / "whole"), log=lines.append).run()
    return lines


@pytest.fixture
def finished(ground: Path, logged: list[str]) -> Path:
    """The folder of a run without interruption."""
    return ground / "whole"


def tree(folder: Path) -> dict[str, Any]:
    """Return the contents of all files of a run, without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if (
            path.is_dir()
            or name in (".lock", "report.json", "report.png", "sessions.json")
            or name.endswith(".manifest.json")
        ):
            continue
        found[name] = path.read_bytes()
        if path.name == "stage.json":
            made = json.loads(found[name])
            found[name] = {key: value for key, value in made.items() if key not in TIMES}
    return found


def stage(folder: Path, part: str) -> Path:
    (found,) = (path for path in folder.iterdir() if part in path.name)
    return found


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_stage_writes_the_input_of_the_next(ground: Path, finished: Path) -> None:
    instructions = lines(stage(finished, "generate-instructions") / "pairs.jsonl")
    responses = lines(stage(finished, "generate-responses") / "pairs.jsonl")
    seeds = lines(ground / "seeds.jsonl")
    assert [row["id"] for row in instructions] == [row["id"] for row in responses] == [row["id"] for row in seeds]
    assert [row["completion"] for row in instructions] == [row["response"] for row in seeds]
    assert [row["prompt"] for row in responses if row["id"] != "s5"] == [
        row["instruction"] for row in seeds if row["id"] != "s5"
    ]
    assert instructions[5]["generation"]["status"] == "empty_instruction"
    for rows, part, side in ((instructions, "train-forward", "y_given_x"), (responses, "train-reverse", "x_given_y")):
        made = json.loads((stage(finished, part) / "stage.json").read_text())
        usable = sum(row["generation"]["status"] == "ok" for row in rows)
        assert 0 < usable < 8
        assert (made["seed_pairs"], made["synthetic_pairs"], made["pairs"]) == (7, usable, 7 + usable)
        assert made["seed"] != json.loads((stage(finished, "warmup-forward") / "stage.json").read_text())["seed"]
        log = lines(stage(finished, part) / "log.jsonl")
        assert all(f"nll_{side}" in entry for entry in log[:-1])  # only this direction
        assert not any(f"nll_{other}" in log[0] for other in {"y_given_x", "x_given_y"} - {side})
        assert any(0.4 < entry.get("synthetic_weight", 0) < 0.6 for entry in log)


def test_training_continues_from_the_last_checkpoint(finished: Path) -> None:
    for direction in ("forward", "reverse"):
        before, after = (
            load_file(stage(finished, part) / direction / "adapter_model.safetensors")
            for part in (f"warmup-{direction}", f"train-{direction}")
        )
        assert before.keys() == after.keys()
        far = sum((after[name] - before[name]).abs().sum() for name in before)
        assert 0 < far < sum(after[name].abs().sum() for name in before)
    names = [path.name for path in finished.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".journal"))]


def test_the_filter_keeps_the_pairs_with_the_lowest_forward_nll(finished: Path) -> None:
    scores = pq.read_table(stage(finished, "filter") / "scores.parquet").to_pylist()
    kept = lines(stage(finished, "filter") / "kept.jsonl")
    augmented = read_generations(stage(finished, "augment") / "pairs.jsonl")
    assert len(scores) == 9
    known = sorted((row["nll_y_given_x"], row["id"]) for row in scores if row["status"] == "ok")
    assert len(known) == len(augmented) > 1
    best = known[: (len(known) + 1) // 2]
    assert sorted(row["id"] for row in kept) == sorted(name for _, name in best)
    report = json.loads((finished / "report.json").read_text())
    assert report["filter"]["threshold"] == best[-1][0]
    assert report["rounds"]["1"]["forward"]["nll_of"] == "eval_pairs"
    assert Path(report["models"]["reverse"]) == stage(finished, "train-reverse") / "reverse"
    assert (finished / "report.png").stat().st_size > 20_000


def test_kept_and_dropped_rows_can_be_read_with_their_texts(finished: Path, logged: list[str]) -> None:
    folder = stage(finished, "filter")
    kept, dropped = lines(folder / "kept.jsonl"), lines(folder / "dropped.jsonl")
    rows = lines(stage(finished, "augment") / "pairs.jsonl")
    assert sorted([row["id"] for row in [*kept, *dropped]]) == [row["id"] for row in rows]
    texts = {row["id"]: (row["prompt"], row["completion"]) for row in rows}
    assert all((row["prompt"], row["completion"]) == texts[row["id"]] for row in [*kept, *dropped])
    scored = [row for row in dropped if row["nll_y_given_x"] is not None]
    worst_kept = max(row["nll_y_given_x"] for row in kept)
    assert all(row["nll_y_given_x"] >= worst_kept for row in scored)
    assert all(row["generation"]["status"] != "ok" for row in dropped if row not in scored)
    said = [line for line in logged if "-filter: " in line]
    best = min(kept, key=lambda row: row["nll_y_given_x"])
    worst = max(scored, key=lambda row: row["nll_y_given_x"])
    for row, verdict in ((best, "kept"), (worst, "dropped")):
        (line,) = [line for line in said if f": {verdict} {row['id']}," in line]
        assert f"nll_y_given_x {row['nll_y_given_x']:.4g}: " in line
        assert line.endswith(f'-> "{row["completion"]}"')


def test_the_log_names_a_generated_row_of_each_kind_that_is_not_used(finished: Path, logged: list[str]) -> None:
    path = stage(finished, "generate-instructions")
    statuses = {row["generation"]["status"] for row in lines(path / "pairs.jsonl")} - {"ok"}
    assert "empty_instruction" in statuses
    for status in statuses:
        first = next(row for row in lines(path / "pairs.jsonl") if row["generation"]["status"] == status)
        (line,) = [line for line in logged if line.startswith(f"{path.name}: not used, {status}, such as ")]
        assert f"such as {first['id']} ({first['generation']['reason']})" in line


def test_the_log_and_the_report_have_the_same_numbers(finished: Path, logged: list[str]) -> None:
    report = json.loads((finished / "report.json").read_text())
    for manifest in report["stages"]:
        said = [line for line in logged if line.startswith(f"{manifest['stage']}: ")]
        if manifest["work"] == "train":
            found = report["rounds"][str(manifest["round"])][manifest["direction"]]
            assert f"loss {found['loss']:.3f}" in said[0]
            assert f"{found['nll']:.3f} nats/token on eval pairs" in said[0]
            if found["synthetic_weight"] is not None:
                assert f"synthetic weight {found['synthetic_weight']:.3f}" in said[0]
        elif manifest["work"] == "filter":
            found = report["filter"]
            kept, dropped = lines(Path(report["kept"])), lines(Path(report["dropped"]))
            assert (found["kept"], found["rows"]) == (len(kept), len(kept) + len(dropped))
            assert (
                f"kept {found['kept']} of {found['rows']} pairs by nll_y_given_x <= {found['threshold']:.4g}" in said[0]
            )
        else:
            assert all(f"{count} {status}" in said[-1] for status, count in manifest["counts"].items())


def test_pairs_over_max_length_are_listed(ground: Path, tmp_path: Path) -> None:
    """Also with packing, whose rows are no pairs."""
    rows = [{"id": f"s{n}", "instruction": "say " + "so " * 70 * (n == 2), "response": f"it is {n}"} for n in range(6)]
    write_lines(tmp_path / "seeds.jsonl", rows)
    training = {"per_device_train_batch_size": 2, "packing": True}
    changes = {"seed_pairs": str(tmp_path / "seeds.jsonl"), "unpaired_responses": None, "training": training}
    said: list[str] = []
    loop = MutualAlignmentLoop(config_of(ground, tmp_path / "run", **changes), log=said.append)
    first = loop.plan[0]
    loop.plan = [first]
    loop.run()
    manifest = json.loads((tmp_path / "run" / first.name / "stage.json").read_text())
    assert (manifest["pairs"], manifest["dropped_over_length"]) == (5, 1)
    (dropped,) = lines(tmp_path / "run" / first.name / "dropped.jsonl")
    assert dropped["prompt"] == rows[2]["instruction"]
    assert f"{first.name}: pairs over 200 tokens, not trained: 1 (see dropped.jsonl)" in said


def test_the_plot_shows_single_points_and_the_logged_counts(ground: Path, finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    figure = draw(report, make_plan(config_of(ground, finished)), RunDir(finished))
    _, alpha, _, scores = figure.axes
    assert alpha.lines
    assert all(line.get_marker() == "." for line in alpha.lines)
    rows = len(lines(ground / "new.jsonl"))
    assert (
        sum(report["filter"]["counts"].values())
        == rows
        > len(read_generations(stage(finished, "augment") / "pairs.jsonl"))
    )
    assert scores.get_title(loc="left") == f"augmented pairs: {report['filter']['kept']} of {rows} kept"


def test_checkpoints_are_ordinary_adapters(ground: Path, finished: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(stage(finished, "train-forward") / "forward")
    assert model.active_peft_config.r == 2
    assert model.active_peft_config.base_model_name_or_path == str(ground / "model")


def test_a_regular_expression_selects_the_adapted_modules(ground: Path, tmp_path: Path) -> None:
    pattern = r".*\.layers\.1\..*[qv]_proj"
    changes = {"unpaired_responses": None, "lora_target_modules": pattern}
    report = MutualAlignmentLoop(config_of(ground, tmp_path / "run", **changes)).run()
    for checkpoint in map(Path, report["models"].values()):
        assert json.loads((checkpoint / "adapter_config.json").read_text())["target_modules"] == pattern
        modules = {name.split(".lora_")[0] for name in load_file(checkpoint / "adapter_model.safetensors")}
        assert modules == {f"base_model.model.model.layers.1.self_attn.{each}_proj" for each in "qv"}


@cpu_only("forked processes cannot share a device")
def test_resume_after_a_kill_in_any_stage_gives_the_same_bytes(ground: Path, finished: Path) -> None:
    out, config = ground / "killed", ground / "killed.json"
    settings = json.loads((finished / "run.json").read_text())["config"]
    config.write_text(json.dumps(settings | {"output_dir": str(out)}))
    ends = [
        forked.end_of(forked.start(run_and_kill.main, str(config), trap, log=ground / "killed.log"))
        for trap in run_and_kill.TRAPS
    ]
    assert ends == ["killed"] * 9 + ["exit 0"], (ground / "killed.log").read_text()[-3000:]
    assert tree(out) == tree(finished)
    whole, resumed = (json.loads((folder / "report.json").read_text()) for folder in (finished, out))
    assert whole["resumed"] == 0
    assert [session["stages"] for session in whole["sessions"]] == [[path.name for path in sorted(finished.glob("0*"))]]
    assert resumed["resumed"] == 8  # the last start found every stage finished
    stages = [name for session in resumed["sessions"] for name in session["stages"]]
    assert stages == [path.name for path in sorted(out.glob("0*"))]
    assert "resumed; started at" in (ground / "killed.log").read_text()
    assert "resumed 8×" in draw(resumed, make_plan(config_of(ground, out)), RunDir(out)).get_suptitle()


def test_a_finished_run_is_not_repeated_and_other_settings_are_an_error(ground: Path, finished: Path) -> None:
    before, said = tree(finished), []
    MutualAlignmentLoop(config_of(ground, finished), log=said.append).run()
    assert said == [f"{path.name}: already finished" for path in sorted(finished.glob("0*"))]
    assert tree(finished) == before
    with pytest.raises(UserError, match=r"config\.temperature was 0\.7, now 0\.5\. Use the old settings"):
        MutualAlignmentLoop(config_of(ground, finished, temperature=0.5)).run()
    changed = ground / "changed.jsonl"
    changed.write_text((ground / "seeds.jsonl").read_text() + "\n")
    with pytest.raises(UserError, match=r"inputs\.seed_pairs\.size was"):
        MutualAlignmentLoop(config_of(ground, finished, seed_pairs=str(changed))).run()
    assert tree(finished) == before


def test_two_full_models_train_without_warmup(ground: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    other = tmp_path / "other"
    tiny_model(vocab=len(tokenizer), initializer_range=0.02, seed=1).save_pretrained(other)
    tokenizer.save_pretrained(other)
    config = config_of(ground, tmp_path / "run", use_peft=False, reverse_model=str(other), warmup_epochs=0.0)
    report = MutualAlignmentLoop(
        replace(config, synthetic_weight_schedule="constant", synthetic_weight=0.3, filter_by="mutual")
    ).run()
    assert list(report["rounds"]) == ["1"]
    assert report["rounds"]["1"]["forward"]["synthetic_weight"] == pytest.approx(0.3)
    assert report["filter"]["filter_by"] == "mutual"
    for direction, start in (("forward", ground / "model"), ("reverse", other)):
        before = load_file(start / "model.safetensors")
        after = load_file(Path(report["models"][direction]) / "model.safetensors")
        gaps = [float((after[name] - before[name]).abs().max()) for name in before]
        assert 0 < max(gaps) < 1  # trained from its own initial model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed_pairs": "absent.jsonl"}, "no such file"),
        ({"unpaired_responses": "absent.jsonl"}, "no such file"),
        ({"model": "./absent"}, "cannot be loaded"),
        ({"max_length": 5000}, "max_length 5000 exceeds the context of .* 512 tokens"),
        ({"training": {"lerning_rate": 1}}, "did you mean 'learning_rate'"),
        ({"training": {"assistant_only_loss": True}}, "assistant_only_loss=True"),
        ({"training": {"semantic_weight": -1}}, "semantic_weight must be finite"),
        ({"training": {"lr_scheduler_type": "wild"}}, "training: "),
        ({"training": {"learning_rate": "high"}}, "training: learning_rate must be a number, got 'high'"),
        ({"training": {"per_device_train_batch_size": "two"}}, "training: per_device_train_batch_size must be a whole"),
        ({"lora_target_modules": ["nothing"]}, "lora_target_modules"),
        ({"generator": "vllm"}, "pip install vllm"),
    ],
)
def test_an_unusable_setting_is_an_error_before_training(
    ground: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        MutualAlignmentLoop(config_of(ground, tmp_path / "run", **changes)).run()
    assert not list(tmp_path.glob("run/*/stage.json"))


def test_too_few_pairs_for_the_only_batch_are_an_error(ground: Path, tmp_path: Path) -> None:
    training = {"dataloader_drop_last": True, "per_device_train_batch_size": 10_000}
    with pytest.raises(UserError, match="dataloader_drop_last=True leaves nothing to train"):
        MutualAlignmentLoop(config_of(ground, tmp_path / "run", training=training)).run()


def test_a_setting_that_the_trainer_refuses_is_an_error_before_the_first_stage(ground: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transformers: nonsense is not supported, only azure_ml"):
        MutualAlignmentLoop(config_of(ground, tmp_path / "run", training={"report_to": "nonsense"}))


def test_incompatible_models_are_an_error(ground: Path, tmp_path: Path) -> None:
    def saved(name: str, tokenizer: Any, rows: int | None = None) -> str:
        tiny_model(vocab=rows or len(tokenizer)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    other = saved("other", byte_tokenizer(special=("<s>", "</s>", "<|im_end|>"), bos="<s>", eos="</s>"))
    plain = saved("plain", byte_tokenizer(template=None))
    endless = saved("endless", byte_tokenizer(eos=None))
    small = saved("small", byte_tokenizer(), rows=200)
    for changes, message in (
        ({"use_peft": False, "reverse_model": other}, "different vocabularies"),
        ({"use_peft": False, "reverse_model": plain}, "different chat templates"),
        ({"model": endless}, "has no EOS token"),
        ({"model": small}, "200 rows in its vocabulary matrix, 259 tokens"),
    ):
        with pytest.raises(UserError, match=message):
            MutualAlignmentLoop(config_of(ground, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_model_without_usable_output_stops_the_run(ground: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generated no usable text \(7 unfinished.*raise max_new_tokens"):
        MutualAlignmentLoop(config_of(ground, tmp_path / "run", max_new_tokens=1, temperature=0)).run()


def test_the_example_config_is_valid() -> None:
    config = read_config(ROOT / "examples" / "loop.yaml")
    assert config.training["learning_rate"] == 1e-4


def test_the_train_command_runs_the_loop_from_a_config_file(ground: Path, tmp_path: Path) -> None:
    config = tmp_path / "loop.yaml"
    config.write_text(
        f"seed_pairs: {ground / 'seeds.jsonl'}\nmodel: {ground / 'model'}\nrounds: 1\nmax_new_tokens: 60\n"
    )
    args = ["train", str(config), "-o", str(tmp_path / "run"), "--max-length", "200", "--warmup-epochs", "0"]
    args += ["--set", "training.per_device_train_batch_size=4", "--set", "lora_r=2"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "round1-train-forward: loss" in done.stderr
    assert "nats/token" in done.stdout
    assert "report.json" in done.stdout
    done = CliRunner().invoke(app, [*args, "--rounds", "2"])
    assert done.exit_code == 1
    assert "config.rounds was 1, now 2" in done.stderr
    done = CliRunner().invoke(app, ["train", str(config)])
    assert done.exit_code == 1
    assert "output_dir is missing" in done.stderr


@cpu_only("two processes need a device each")
def test_two_processes_share_the_work(ground: Path, finished: Path, tmp_path: Path) -> None:
    config = tmp_path / "loop.json"
    settings = json.loads((finished / "run.json").read_text())["config"]
    config.write_text(json.dumps(settings | {"output_dir": str(tmp_path / "run")}))
    forked.run_ranks(2, run_and_kill.main, str(config), folder=tmp_path)  # started as torchrun starts them
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["processes"] == 2
    # two processes with batches of four: each step averages eight pairs
    made = json.loads((stage(run, "round1-train-forward") / "stage.json").read_text())
    alone = json.loads((stage(finished, "round1-train-forward") / "stage.json").read_text())
    assert made["steps"] == (alone["pairs"] + 7) // 8
    ids = [row["id"] for row in lines(stage(run, "generate-instructions") / "pairs.jsonl")]
    assert ids == [row["id"] for row in lines(ground / "seeds.jsonl")]


@pytest.mark.slow
@pytest.mark.longest
def test_the_loop_runs_on_a_real_model(tmp_path: Path) -> None:
    pairs = [row for row in lines(ROOT / "examples" / "pairs.jsonl") if row["aligned"]]
    short = sorted(pairs, key=lambda row: len(row["instruction"] + row["response"]))
    fields = ("id", "instruction", "response")
    write_lines(tmp_path / "seeds.jsonl", [{name: row[name] for name in fields} for row in short[:4]])
    write_lines(tmp_path / "new.jsonl", [{name: row[name] for name in ("id", "response")} for row in short[4:7]])
    config = LoopConfig(
        seed_pairs=str(tmp_path / "seeds.jsonl"),
        unpaired_responses=str(tmp_path / "new.jsonl"),
        output_dir=str(tmp_path / "run"),
        rounds=1,
        warmup_epochs=1.0,
        max_length=128,
        max_new_tokens=16,
        lora_target_modules=["q_proj", "v_proj"],  # PEFT takes a second per model for all
        training={"per_device_train_batch_size": 4, "learning_rate": 4e-3, "gradient_checkpointing": False},
    )
    report = MutualAlignmentLoop(config).run()
    for direction in ("forward", "reverse"):
        assert report["rounds"]["1"][direction]["nll"] < report["rounds"]["0"][direction]["nll"]
    assert 0 < report["filter"]["kept"] < 3
