"""Settings of MAIN's loop, from files and assignments."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from main_align.errors import UserError
from main_align.loop import read_config

NEEDED: dict[str, Any] = {"seed_pairs": "s.jsonl", "output_dir": "run"}


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (".yaml", "seed_pairs: s.jsonl\noutput_dir: run\nrounds: 3\ntraining:\n  learning_rate: 5e-5\n  seed_of: x\n"),
        (
            ".json",
            '{"seed_pairs": "s.jsonl", "output_dir": "run", "rounds": 3, '
            '"training": {"learning_rate": 5e-5, "seed_of": "x"}}',
        ),
        (
            ".toml",
            'seed_pairs = "s.jsonl"\noutput_dir = "run"\nrounds = 3\n[training]\nlearning_rate = 5e-5\nseed_of = "x"\n',
        ),
    ],
)
def test_overrides_and_assignments_replace_settings_of_every_file_format(
    tmp_path: Path, ending: str, text: str
) -> None:
    path = tmp_path / f"loop{ending}"
    path.write_text(text)
    config = read_config(path, {"keep": 0.25}, ["training.learning_rate=1e-3", "synthetic_weight=0.3"])
    assert (config.rounds, config.keep, config.synthetic_weight) == (3, 0.25, 0.3)
    assert config.training == {"learning_rate": 1e-3, "seed_of": "x"}
    assert read_config(path).training["learning_rate"] == 5e-5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"round": 3}, "unknown setting 'round'; did you mean 'rounds'?"),
        ({"zzz": 3}, "unknown setting 'zzz'; known are"),
        ({"rounds": "3"}, "rounds must be a whole number, got '3'"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"temperature": 1e-320}, "temperature must be 0, which is greedy, or at least 1e-06, got 1e-320"),
        ({"temperature": math.inf}, "temperature must be finite, got inf"),
        ({"warmup_epochs": math.inf}, "warmup_epochs must be finite, got inf"),
        ({"keep": 1.5}, "keep must be at most 1"),
        ({"seed": 4_294_967}, "seed must be below 4294967, got 4294967"),
        ({"lora_dropout": 1}, "lora_dropout must be below 1, got 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"use_peft": "yes"}, "use_peft must be true or false"),
        ({"filter_by": "best"}, "filter_by must be one of forward_nll, mutual"),
        ({"lora_target_modules": [1]}, "lora_target_modules must be text or a list of text"),
        ({"reverse_model": "other"}, "set use_peft to false"),
        ({"instruction_field": "q"}, "needs response_field"),
        ({"training": {"seed": 1}}, "training.seed is set by seed"),
        ({"training": {"eos_token": "</s>"}}, "training.eos_token is set by the model's tokenizer"),
        ({"training": {"save_strategy": "epoch"}}, "training.save_strategy is set by the loop"),
        ({"training": {"eval_on_start": True}}, "training.eval_on_start is set by the loop"),
        ({"training": {"load_best_model_at_end": True}}, "training.load_best_model_at_end is set by the loop"),
        ({"training": {"metric_for_best_model": "loss"}}, "training.metric_for_best_model is set by the loop"),
        ({"training": {"resume_from_checkpoint": True}}, "training.resume_from_checkpoint is set by the loop"),
        ({"training": {"push_to_hub": True}}, "training.push_to_hub is set by the loop"),
        ({"seed_pairs": None}, "seed_pairs is missing"),
        ({"output_dir": None}, "name the output folder in the file or with --output"),
    ],
)
def test_an_invalid_setting_is_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    path = tmp_path / "loop.json"
    path.write_text(json.dumps(NEEDED | given))
    with pytest.raises(UserError) as error:
        read_config(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "ends in .yaml"),
        ("absent.yaml", None, "no such config file"),
        ("bad.json", "{", "cannot be read"),
        ("bad.yaml", "a: [", "cannot be read"),
        ("bad.toml", "a = ", "cannot be read"),
        ("list.yaml", "- a\n", "contains a list, not settings"),
    ],
)
def test_an_unreadable_config_file_is_an_error(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds", "KEY=VALUE"),
        ("runds=2", "did you mean 'rounds'"),
        ("model.name=x", "only training has inner settings"),
        ("temperature=[1", "--set temperature=.*: the value is not YAML: "),
    ],
)
def test_an_invalid_assignment_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config(None, NEEDED, [text])
