"""The example scripts and the code of README.md and docs/training.md run on a tiny model."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")
pytest.importorskip("peft")

from datasets import Dataset
from main_align.loop import read_config
from main_align.loop.pairs import read_pairs
from main_align.training.model.checkpoint import FILE
from transformers import Trainer

from tests.align.tiny_models import DEVICE, tiny_model_folder
from tests.align.training.step_gradients import PAIRS

ROOT = Path(__file__).parents[3]


def run(monkeypatch, script: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")


@pytest.fixture
def model(tmp_path):  # type: ignore[no-untyped-def]
    """Long enough for the example pairs in a byte-level tokenizer."""
    return str(tiny_model_folder(tmp_path, max_position_embeddings=2048))


def test_the_sft_example_runs(monkeypatch, tmp_path, model):
    out = tmp_path / "out"
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair | {"aligned": True}) + "\n" for pair in PAIRS))
    sizes = ("--max-steps", "2", "--batch", "4")
    run(monkeypatch, "train_sft.py", "--model", model, "--data", str(data), "--out", str(out), *sizes)
    assert {"adapter_model.safetensors", FILE} <= {path.name for path in out.iterdir()}


def test_the_trainer_example_runs(monkeypatch, tmp_path, model):
    out = tmp_path / "out"
    arguments = ("--model", model, "--out", str(out), "--max-steps", "1", "--batch", "2", "--accumulate", "2")
    run(monkeypatch, "train_trainer.py", *arguments)
    assert {"model.safetensors", FILE} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize("script", ["train_sft.py", "train_trainer.py"])
def test_pairs_marked_as_mismatched_are_not_trained_on(monkeypatch, tmp_path, model, script):
    trained = []
    monkeypatch.setattr(Trainer, "train", lambda self: trained.extend(self.train_dataset))
    monkeypatch.setattr(Trainer, "save_model", lambda self: None)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair | {"aligned": n % 3 > 0}) + "\n" for n, pair in enumerate(PAIRS)))
    run(monkeypatch, script, "--model", model, "--data", str(data), "--out", str(tmp_path / "out"))
    assert len(trained) == sum(n % 3 > 0 for n in range(len(PAIRS)))


def test_the_loop_example_trains_on_aligned_pairs(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = read_config("examples/loop.yaml")
    rows = [json.loads(line) for line in Path(config.seed_pairs).read_text().splitlines()]
    seed_pairs = read_pairs(config.seed_pairs, config)
    assert [pair.id for pair in seed_pairs.usable] == [row["id"] for row in rows if row["aligned"]]
    assert {pair.status for pair in seed_pairs.pairs} == {"ok", "mismatched"}


def test_the_bare_loop_example_runs(monkeypatch, capsys):
    run(monkeypatch, "train_bare_loop.py", "--steps", "100", "--batch", "64")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    accuracy = float(re.search(r"accuracy_x_to_y ([\d.]+)", last).group(1))  # type: ignore[union-attr]
    assert accuracy > 0.9


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_the_lines_shown_in_the_docs_run(monkeypatch, tmp_path, model, page):
    """Every python block that trains, with the tiny model in place of a large one, and one step."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    training = [block for block in blocks if ".train()" in block]
    assert training
    monkeypatch.chdir(tmp_path)
    for block in training:
        code = block.replace('"meta-llama/Llama-3.2-1B"', repr(model)).replace(
            '"out"', '"out", max_steps=1, use_cpu=' + str(DEVICE == "cpu")
        )
        exec(compile(code, page, "exec"), {"ds": Dataset.from_list(PAIRS)})
