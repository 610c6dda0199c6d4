"""The command line: help with examples, exit codes, error messages, and complete runs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from main_align.cli.app import app
from main_align.cli.plots import check_plot, plot_scores
from main_align.cli.score import score
from main_align.cli.train import train
from main_align.errors import UserError
from main_align.loop import LoopConfig
from main_align.models.devices import pick_device, pick_dtype
from main_align.scoring.columns import ALIASES
from main_align.scoring.job import score_file
from main_align.scoring.manifest import manifest_path
from main_align.scoring.scorer import Scorer
from typer.testing import CliRunner

from tests.align.tiny_models import tiny_model_folder

PAIRS = [
    {
        "id": f"r{n}",
        "instruction": f"question {n}?",
        "response": f"answer {n * n}",
        "aligned": n > 3,
    }
    for n in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS) + '{"torn')
    return path


def invoke(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("command", [command.name for command in app.registered_commands])
def test_the_help_has_an_example(command: str) -> None:
    code, text, _ = invoke(command, "--help")
    assert code == 0
    assert f"main-align {command}" in text
    if command in ("score", "filter", "train"):
        assert "nats" in text or "unit" in text


def test_the_defaults_of_score_are_those_of_scorer() -> None:
    """Options repeat defaults of the Python interface, since importing it would slow down --help."""
    options = inspect.signature(score).parameters
    for function in (Scorer.__init__, score_file):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in options and parameter.default is not parameter.empty and name != "dtype":
                assert options[name].default == parameter.default, name


def test_the_help_of_train_names_the_defaults_of_the_settings() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(LoopConfig)}
    hints = get_type_hints(train, include_extras=True)
    texts = {name: str(get_args(hint)[1].help) for name, hint in hints.items() if hint is not type(None)}
    named = {name: match[1] for name, text in texts.items() if (match := re.search(r"Default: (\S+)\.$", text))}
    assert len(named) >= 6
    for name, default in named.items():
        assert float(default) == defaults[name] if default[0].isdigit() else default == defaults[name], name


def test_the_help_of_filter_names_every_alias() -> None:
    text = invoke("filter", "--help")[1]
    assert all(alias in text for alias in ALIASES)


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pyarrow', 'matplotlib', 'datasets'}"
    code = f"import sys, main_align.cli.app, main_align; print({heavy} & sys.modules.keys() or 'light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


def test_shards_of_a_folder_can_be_merged_and_filtered(tmp_path: Path, pairs: Path, model: Path) -> None:
    scored, files = tmp_path / "scored", [pairs, tmp_path / "more.jsonl"]
    files[1].write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    settings = ("--model", model, "--sort-window", 10)
    code, text, log = invoke("score", *files, "-o", scored, *settings, "--shard", "0/2")
    assert code == 0, log
    assert "shard 0/2 is done; 2 of 4 parts are left to others" in text
    assert invoke("filter", scored, "-o", tmp_path / "kept.jsonl", "--top", 1)[0] == 1
    code, text, log = invoke("score", *files, "-o", scored, *settings, "--shard", "1/2")
    assert code == 0, log
    assert "25 rows" in text
    assert "bad_json: 1 rows, the first: pairs.jsonl, line 13" in log
    assert invoke("merge", scored, "-o", tmp_path / "merged.csv")[0] == 0
    assert invoke("score", *files, "-o", tmp_path / "whole.csv", *settings)[0] == 0
    assert (tmp_path / "merged.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert invoke("filter", scored, "-o", tmp_path / "kept.jsonl", "--top", 3)[0] == 0
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 3
    code, _, log = invoke("score", *files, "-o", tmp_path / "o.csv", *settings, "--gpus-per-worker", 1)
    assert (code, "need --engine ray" in log) == (1, True)


def test_tokens_of_shared_prefixes_are_counted_and_printed(tmp_path: Path, model: Path) -> None:
    source, out = tmp_path / "answers.jsonl", tmp_path / "scores.csv"
    question = "Which of these animals is the largest?"
    pairs = [{"instruction": question, "response": text} for text in ("whale", "dog", "the blue whale")]
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    code, text, log = invoke("score", source, "-o", out, "--model", model)
    assert code == 0, log
    saved = json.loads(manifest_path(out).read_text())["throughput"]["shared_tokens"]
    assert saved > 2 * len(question)  # the tokenizer has one token per byte
    assert f"{saved:,} tokens saved by shared prefixes" in text


def test_scores_can_be_filtered(tmp_path: Path, pairs: Path, model: Path) -> None:
    out, kept = tmp_path / "scores.parquet", tmp_path / "kept.jsonl"
    plots = tmp_path / "a.png", tmp_path / "b.png"
    code, text, log = invoke("score", pairs, "-o", out, "--model", model, "--plot", plots[0])
    assert code == 0, log
    assert "bad_json" in text
    assert "pairs/s" in text
    assert "mutual" in text
    manifest = json.loads(manifest_path(out).read_text())
    assert manifest["counts"] == {"ok": 12, "bad_json": 1}
    assert manifest["command"]["model"] == str(model)
    assert f"torch.{manifest['settings']['scorer']['dtype']}" == str(pick_dtype("auto", pick_device("auto")))
    assert manifest["throughput"]["tokens"] > 0
    assert manifest["versions"]["torch"]
    code, text, _ = invoke("filter", out, "-o", kept, "--keep", 0.5, "--plot", plots[1])
    assert code == 0
    assert "kept 6 of 13 rows" in text
    assert "rows marked aligned" in text
    assert all(plot.stat().st_size > 10_000 for plot in plots)
    assert [json.loads(line)["instruction"][:8] for line in kept.read_text().splitlines()] == ["question"] * 6
    code, _, log = invoke("score", pairs, "-o", out, "--model", model)
    assert code == 0
    assert "already complete" in log
    code, _, log = invoke("score", pairs, "-o", out, "--model", model, "--seed", 1)
    assert code == 1
    assert "scorer.seed was 0, now 1" in log
    assert "--restart" in log
    assert invoke("score", pairs, "-o", out, "--model", model, "--seed", 1, "--restart")[0] == 0


def test_a_plot_appears_complete_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"--plot .*folder\.png is a folder; give a file name"):
        check_plot(tmp_path / "folder.png")

    def cut(figure: object, path: Path, **options: object) -> None:
        path.write_text("<svg")
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", cut)
    with pytest.raises(OSError, match="no space left"):
        plot_scores(tmp_path / "p.svg", {"mutual": np.ones(3)}, panels={"mutual": "nats"}, title="title")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_printed_paths_are_not_wrapped(tmp_path: Path) -> None:
    folder = tmp_path / " ".join(["a long name with spaces"] * 5)
    folder.mkdir()
    (tmp_path / "scores.csv").write_text("id,status,reason,mutual\n1,ok,,0.5\n")
    out, plot = folder / "k.csv", folder / "k.png"
    code, text, log = invoke("filter", tmp_path / "scores.csv", "-o", out, "--top", 1, "--scores-only", "--plot", plot)
    assert code == 0, log
    assert text.endswith(f"kept rows: {out}\nhistograms: {plot}\n")


def test_a_filter_that_keeps_no_row_says_so(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("id,status,reason,mutual\n1,ok,,0.5\n")
    for ending in ("jsonl", "csv", "parquet"):
        out = tmp_path / f"kept.{ending}"
        code, _, log = invoke("filter", tmp_path / "scores.csv", "-o", out, "--min", 2, "--scores-only")
        assert code == 0
        assert log == f"no row was kept, so {out} has none; relax the conditions\n"
        assert invoke("filter", tmp_path / "scores.csv", "-o", out, "--min", 0, "--scores-only")[2] == ""


def test_the_plot_of_a_file_with_another_encodings_name(tmp_path: Path, pairs: Path, model: Path) -> None:
    source = pairs.rename(Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jsonl")))
    code, _, log = invoke("score", source, "-o", tmp_path / "s.csv", "--model", model, "--plot", tmp_path / "s.png")
    assert code == 0, log
    assert (tmp_path / "s.png").stat().st_size > 10_000


def test_a_run_without_scored_rows_exits_1_with_the_reason(tmp_path: Path, model: Path) -> None:
    rows, out = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    code, _, log = invoke("score", rows, "-o", out, "--model", model, "--max-length", 12)
    assert code == 1
    assert "too_long: 12 rows, the first: line 1: " in log
    assert "the 21 tokens of the markers leave no room" in " ".join(log.split())
    assert "no row could be scored" in log
    code, _, log = invoke("filter", out, "-o", tmp_path / "k.jsonl", "--keep", 1)
    assert code == 1
    assert "no row has a value of mutual" in log
    rows.write_text("".join(json.dumps({"question": "a", "reply": "b"}) + "\n" for _ in range(3)))
    code, _, log = invoke("score", rows, "-o", out, "--model", "./no-such-model")
    assert code == 1
    assert "none of the first 3 rows" in log


def test_unused_text_fields_of_standard_input_are_reported(tmp_path: Path, model: Path) -> None:
    text = "".join(json.dumps(pair | {"hint": "h"}) + "\n" for pair in PAIRS)
    args = ["score", "-", "-o", str(tmp_path / "o.jsonl"), "--model", str(model)]
    result = CliRunner().invoke(app, args, input=text)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("text fields that are not scored: 'hint'") == 1
    assert json.loads(manifest_path(tmp_path / "o.jsonl").read_text())["unused_text_fields"] == {"hint": 12}
    result = CliRunner().invoke(app, args, input=text)
    assert "already complete" in result.stderr
    code, _, log = invoke("filter", tmp_path / "o.jsonl", "-o", tmp_path / "k.jsonl", "--keep", 1)
    assert code == 1
    assert "scored from standard input" in log


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("score", "absent.jsonl", "-o", "o.csv"), "no such file"),
        (("score", "PAIRS", "-o", "o.xlsx"), "the ending selects the format"),
        (("score", "PAIRS", "-o", "o.csv", "--plot", "p.doc"), ".png"),
        (
            ("score", "PAIRS", "-o", "o.csv", "--id-field", "i", "--response-field", "r"),
            "both sides",
        ),
        (("score", "PAIRS", "-o", "o.csv", "--model", "./no-such-model"), "no-such-model"),
        (("filter", "absent.csv", "-o", "k.csv", "--top", 1), "no such file"),
        (("filter", "PAIRS", "-o", "k.csv", "--top", 1), "not a score file"),
        (("filter", "PAIRS", "-o", "k.csv"), "give one of --keep"),
        (("filter", "SCORES", "-o", "k.csv", "--by", "perplexity_y", "--top", 1), "--higher-is-better"),
        (("filter", "PAIRS", "-o", "k.csv", "--min", 2, "--max", 1), "--min 2 is above --max 1"),
        (("filter", "PAIRS", "-o", "k.csv", "--min", "mutual=2", "--max", "mutual=1"), "--min mutual=2 is above"),
        (("filter", "PAIRS", "-o", "k.csv", "--min", 2, "--max", "mutual=1"), "--max mutual=1, so no row"),
        (("filter", "PAIRS", "-o", "k.csv", "--recommended", "--max", "echo=-1", "--min", "echo=0"), "no row"),
        (("filter", "SCORES", "-o", "k.csv", "--by", "nonsense", "--min", "mutual=0"), "--by nonsense has no effect"),
        (("filter", "SCORES", "-o", "k.csv", "--recommended", "--lower-is-better"), "the better direction has no"),
        (("filter", "SCORES", "-o", "k.csv", "--top", 1, "--scores-only", "--input", "PAIRS"), "--input has no effect"),
        (("filter", "PAIRS", "-o", "k.csv", "--min", "mutual=high"), "'high' is not a number"),
        (("filter", "PAIRS", "-o", "k.csv", "--min", 1, "--min", 2), "--min COLUMN=VALUE"),
        (("filter", "SCORES", "-o", "k.csv", "--min", "=1"), "--min =1: no column before ="),
        (("filter", "SCORES", "-o", "k.csv", "--max", "nan"), "the limit of --by is not a number"),
        (("filter", "SCORES", "-o", "k.csv", "--max", "echo=nan"), "the limit of echo is not a number"),
        (("filter", "SCORES", "-o", "k.csv", "--min", "mutual=0.1", "--max", "nll_end=1"), "no column 'nll_end'"),
    ],
)
def test_a_user_error_is_printed_and_exits_1(
    tmp_path: Path,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores.csv").write_text("id,status,mutual,perplexity_y\n1,ok,0.5,3\n")
    files = {"PAIRS": pairs, "SCORES": "scores.csv"}
    code, _, log = invoke(*(files.get(arg, arg) for arg in args))
    assert code == 1
    assert log.splitlines()[-1].startswith("main-align: ") or "main-align: " in log
    assert message in log
    assert "Traceback" not in log


def test_ctrl_c_exits_130_and_prints_how_to_resume(tmp_path: Path, model: Path) -> None:
    many = tmp_path / "many.jsonl"
    rows = (PAIRS[n % 12] | {"id": f"m{n}", "response": "word " * 60} for n in range(2000))
    many.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "o.jsonl"
    command = [sys.executable, "-m", "main_align", "score", str(many), "-o", str(out)]
    command += ["--model", str(model), "--sort-window", "50"]
    # a shell that starts the tests in the background has interrupts ignored, which children inherit
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    work = tmp_path / "o.jsonl.partial" / "work"
    deadline = time.monotonic() + 60
    while not any(work.rglob("bank-*.journal")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130, log
    assert "run again to resume" in log
    assert "Traceback" not in log
    assert any(work.rglob("*.journal"))
    assert not out.exists()


@pytest.mark.slow
def test_the_real_model_ranks_the_examples(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    source, out = tmp_path / "short.jsonl", tmp_path / "s.parquet"
    lines = (Path(__file__).parents[3] / "examples" / "pairs.jsonl").read_text().splitlines(keepends=True)
    rows = ((line, json.loads(line)) for line in lines)
    # 48 of the 103 pairs, with a fifth of their text
    source.write_text("".join(line for line, row in rows if len(row["instruction"] + row["response"]) <= 200))
    code, _, log = invoke("score", source, "-o", out)
    assert code == 0, log
    mutual = pq.read_table(out)["mutual"].to_pylist()
    marks = [json.loads(line)["aligned"] for line in source.read_text().splitlines()]
    good = [value for value, mark in zip(mutual, marks, strict=True) if mark]
    bad = [value for value, mark in zip(mutual, marks, strict=True) if not mark]
    wins = sum(g > b for g in good for b in bad) / (len(good) * len(bad))
    # Most mismatches answer a similar question and two are echoes, so this is far from 1.
    assert wins > 0.75, "the area under the curve of mutual, aligned against mismatched"
