"""main-align sft: TRL's parser over MutualAlignmentConfig, from a file and from options."""

from __future__ import annotations

import json

import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import HfApi
from main_align.cli.app import app
from main_align.errors import UserError
from main_align.trainer_arguments import refused_settings
from main_align.training.sft import load_pairs, run_sft
from main_align.training.sft_parser import SftParser
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from typer.testing import CliRunner

from ..tiny_models import tiny_model_folder

PAIRS = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(8)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return str(path)


def test_a_settings_file_and_options_train_and_save_a_model(tmp_path, data):
    model, out = tiny_model_folder(tmp_path), tmp_path / "out"
    config = tmp_path / "sft.yaml"
    config.write_text(
        f"model_name_or_path: {model}\ndataset_name: {data}\nsemantic_weight: 0.5\nmax_steps: 50\nlogging_steps: 1\n"
        "report_to: none\nper_device_train_batch_size: 4\nbf16: false\nsave_strategy: 'no'\n"
    )
    result = CliRunner().invoke(
        app, ["sft", str(config), "--max_steps", "2", "--reverse_weight", "0", "--output_dir", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert f"model: {out}" in result.output
    AutoModelForCausalLM.from_pretrained(out)
    card = (out / "README.md").read_text()
    assert "# Model Card for out\n" in card
    assert "Trained on 8 pairs" in card
    trainer = run_sft(["--config", str(config), "--max_steps", "1", "--output_dir", str(out)])
    assert trainer.args.semantic_weight == 0.5
    logged = trainer.state.log_history[0]
    assert "loss_semantic" in logged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "x"], "dataset_name is not set"),
        (["--dataset_name", "DATA"], "model_name_or_path is not set"),
        (["--dataset_name", "DATA", "--model_name_or_path", "m", "--no_such_option", "1"], "no_such_option"),
        (["--dataset_name", "DATA", "--model_name_or_path", "m", "--eval_strategy", "epoch"], "has no split 'test'"),
        (
            ["--dataset_name", "DATA", "--model_name_or_path", "m", "--resume_from_checkpoint", "absent"],
            "resume_from_checkpoint: absent is not a folder: give a checkpoint",
        ),
    ],
)
def test_what_is_missing_is_named(data, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run_sft([data if each == "DATA" else each for each in arguments])


BEST = "--eval_strategy steps --eval_steps 1 --dataset_test_split train --metric_for_best_model nonsense"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--report_to nonsense", "transformers: nonsense is not supported, only azure_ml"),
        ('--accelerator_config {"nonsense":1}', r"transformers: AcceleratorConfig.* unexpected keyword"),
        ("--use_peft true --lora_r 0", "peft: `r` should be a positive integer"),
        ("--resume_from_checkpoint FOLDER", "transformers: Can't find a valid checkpoint"),
        ("--learning_rate -1", "torch.optim: Invalid learning rate: -1.0"),
        ("--dataloader_num_workers -1", "torch.utils.data: num_workers option should be non-negative"),
        ("--dataset_num_proc -1", "datasets: num_proc must be"),
        ("--seed -1", "seed must be at least 0"),
        (
            '--model_init_kwargs {"dtype":"nonsense"}',
            "the model '.*' cannot be loaded with these settings .*'nonsense'",
        ),
        ("--attn_implementation nonsense", "the model '.*' cannot be loaded with these settings .*nonsense.*eager"),
        ('--model_init_kwargs {"nonsense":1}', "the model '.*' cannot be loaded with these settings .*'nonsense'"),
        (f"{BEST} --load_best_model_at_end true --save_steps 1", "transformers: The `metric_for_best_model` training"),
    ],
)
def test_what_a_library_refuses_is_an_error_without_traceback(data, tmp_path, options, message):
    needed = f"--model_name_or_path {tiny_model_folder(tmp_path)} --dataset_name {data} --output_dir {tmp_path}/out"
    options = options.replace("FOLDER", str(tmp_path))
    with pytest.raises(UserError, match=f"^{message}"):
        run_sft(f"{needed} --report_to none --max_steps 1 {options}".split())


def test_a_hub_that_cannot_be_reached_is_an_error(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "none")
    with pytest.raises(UserError, match=r"^huggingface_hub: "), refused_settings():
        HfApi(endpoint="http://127.0.0.1:9").whoami()


def test_an_error_of_torch_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="must match"), refused_settings():
        torch.ones(2) + torch.ones(3)
    x, y = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 3, 4)
    with pytest.raises(RuntimeError, match="must match"), refused_settings():
        apply_rotary_pos_emb(x, x, y, y)


def test_an_error_in_what_datasets_calls_keeps_its_traceback(data, monkeypatch):
    def fail(*_, **__):
        raise KeyError("a bug")
        yield

    monkeypatch.setattr("main_align.training.dataset.local_files._records", fail)
    with pytest.raises(DatasetGenerationError), refused_settings():
        load_pairs(data)


@pytest.mark.parametrize(
    ("value", "counted"),
    [("non_padding", "non_padding"), ("all", "all"), ("true", "all"), ("", "all"), ("no", "no"), ("false", "no")],
)
def test_the_tokens_to_count_are_a_word_or_a_boolean(tmp_path, value, counted):
    options = ["--output_dir", str(tmp_path), "--include_num_input_tokens_seen", *value.split()]
    assert SftParser().parse(options)[1].include_num_input_tokens_seen == counted


OPTIONS = r" \(`main-align sft --options` lists the options\)$"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--lerning_rate 1", r"no such option: --lerning_rate, did you mean --learning_rate\?" + OPTIONS),
        ("--max_stepz=3 --zzz 1 2", r"no such option: --max_stepz, did you mean .*; no such option: --zzz" + OPTIONS),
        ("stray words", "no such option: stray; no such option: words" + OPTIONS),
        ("--learning_rate x", "argument --learning_rate/--learning-rate: invalid float value: 'x'" + OPTIONS),
        ("--optim nonsense", "argument --optim: invalid choice: 'nonsense'"),
        ("--loss 1", "ambiguous option: --loss could match --loss_type"),
        ("--seed 1 --config", "argument --config: expected one argument" + OPTIONS),
        ("--config=absent.yaml", "No such file or directory: 'absent.yaml'"),
        ("--model_init_kwargs {", "'{' is not JSON: "),
        ("--lr_scheduler_kwargs x", "lr_scheduler_kwargs must be a table in JSON, such as .*, got 'x'"),
    ],
)
def test_a_wrong_option_is_an_error_of_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as refused:
        SftParser().parse(arguments.split())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", r"no such option: --lerning_rate, did you mean --learning_rate\?" + OPTIONS),
        ("a: [1", 'the settings file is not YAML: .* in ".*sft.yaml", line 1'),
        ("- 1", "must contain a YAML mapping"),
        ("learning_rate: [1, 2]", "learning_rate must be a number, got list"),
        ("learning_rate: null", "learning_rate must be a number, got None"),
        ("learning_rate: true", "argument --learning_rate/--learning-rate: invalid float value: 'True'" + OPTIONS),
        ("max_steps: 1.5", "argument --max_steps/--max-steps: invalid int value: '1.5'" + OPTIONS),
        ("model_init_kwargs: 5", "model_init_kwargs must be a table in JSON, such as .*, got '5'"),
        ("dataset_name: [a]", "dataset_name must be text or null, got list"),
        ("use_peft: 3", "argument --use_peft/--use-peft: Truthy value expected: got 3"),
        ("optim: nonsense", "nonsense is not a valid OptimizerNames"),
    ],
)
def test_a_wrong_setting_of_a_file_is_an_error_of_one_line(tmp_path, text, message):
    (tmp_path / "sft.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        SftParser().parse(["--config", str(tmp_path / "sft.yaml")])
    assert "\n" not in str(refused.value)


def test_settings_of_a_file_have_the_types_of_their_options(tmp_path):
    (tmp_path / "sft.yaml").write_text(
        "learning_rate: 1e-5\nweight_decay: 1\nrun_name: 7\nlora_target_modules: [q_proj, v_proj]\nseed: 3\n"
        "report_to: [none]\nlr_scheduler_kwargs: {num_cycles: 2}\noptim: sgd\nbf16: false\nuse_peft: yes\n"
        f"eval_strategy: 'no'\noutput_dir: {tmp_path}\n"
    )
    _, training, model = SftParser().parse(["--config", str(tmp_path / "sft.yaml"), "--seed", "4"])
    assert (training.learning_rate, training.weight_decay, training.run_name, training.seed) == (1e-5, 1, "7", 4)
    assert (training.lr_scheduler_kwargs, training.optim, training.bf16) == ({"num_cycles": 2}, "sgd", False)
    assert (model.lora_target_modules, model.use_peft) == (["q_proj", "v_proj"], True)


def test_a_missing_settings_file_is_an_error():
    result = CliRunner().invoke(app, ["sft", "absent.yaml"])
    assert result.exit_code == 1
    assert "absent.yaml: no such settings file" in result.output


def test_the_options_are_listed():
    result = CliRunner().invoke(app, ["sft", "--options"])
    assert result.exit_code == 0
    assert "--semantic_weight" in result.output
    assert "--use_peft" in result.output
