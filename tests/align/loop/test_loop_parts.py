"""The parts of MAIN's loop by themselves: settings, plan, pairs, prompts, sampling, the run's folder, the scorer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

import torch
from main_align.data.pairs import Pair, Turn
from main_align.errors import UserError
from main_align.loop import LoopConfig, read_config
from main_align.loop.generate_stage import collect, write_missing_sides
from main_align.loop.generation import (
    InverseTransform,
    Prompt,
    Sampling,
    TransformersWriter,
    make_batches,
    make_prompts,
    read_off,
    stop_tokens,
)
from main_align.loop.mutual_filter import MutualScorer
from main_align.loop.pairs import Written, read_seeds, read_unlabelled, read_written, training_rows, written_row
from main_align.loop.plan import make_plan
from main_align.loop.run_dir import RunFolder
from main_align.models.encoding import EncodedPair, PairEncoder
from main_align.models.load import LoadedModel
from main_align.scoring.scorer import Scorer

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model

NEEDED: dict[str, Any] = {"seeds": "s.jsonl", "output_dir": "run"}


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---- settings ----


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (".yaml", "seeds: s.jsonl\noutput_dir: run\nrounds: 3\ntraining:\n  learning_rate: 5e-5\n  seed_of: x\n"),
        (
            ".json",
            '{"seeds": "s.jsonl", "output_dir": "run", "rounds": 3, '
            '"training": {"learning_rate": 5e-5, "seed_of": "x"}}',
        ),
        (
            ".toml",
            'seeds = "s.jsonl"\noutput_dir = "run"\nrounds = 3\n[training]\nlearning_rate = 5e-5\nseed_of = "x"\n',
        ),
    ],
)
def test_a_config_file_of_every_kind_with_settings_on_top(tmp_path: Path, ending: str, text: str) -> None:
    path = tmp_path / f"loop{ending}"
    path.write_text(text)
    config = read_config(path, {"keep": 0.25}, ["training.learning_rate=1e-3", "alpha=0.3"])
    assert (config.rounds, config.keep, config.alpha) == (3, 0.25, 0.3)
    assert config.training == {"learning_rate": 1e-3, "seed_of": "x"}
    assert read_config(path).training["learning_rate"] == 5e-5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"round": 3}, "unknown setting 'round'; did you mean 'rounds'?"),
        ({"zzz": 3}, "unknown setting 'zzz'; known are"),
        ({"rounds": "3"}, "rounds must be a whole number, got '3'"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"keep": 1.5}, "keep must be at most 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"use_peft": "yes"}, "use_peft must be true or false"),
        ({"criterion": "best"}, "criterion must be one of forward_nll, mutual"),
        ({"lora_target_modules": [1]}, "lora_target_modules must be text or a list of text"),
        ({"reverse_model": "other"}, "set use_peft to false"),
        ({"instruction_field": "q"}, "needs response_field"),
        ({"training": {"seed": 1}}, "training.seed is set by seed"),
        ({"training": {"eos_token": "</s>"}}, "training.eos_token is set by the model's tokenizer"),
        ({"training": {"save_strategy": "epoch"}}, "training.save_strategy is set by the loop"),
        ({"seeds": None}, "seeds is missing"),
        ({"output_dir": None}, "name the run's folder in the file or with --output"),
    ],
)
def test_settings_that_make_no_sense_name_the_key(tmp_path: Path, given: dict[str, Any], message: str) -> None:
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
        ("list.yaml", "- a\n", "holds list, not settings"),
    ],
)
def test_config_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [("rounds", "KEY=VALUE"), ("runds=2", "did you mean 'rounds'"), ("model.name=x", "only training has settings")],
)
def test_assignments_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config(None, NEEDED, [text])


# ---- plan ----


def test_every_stage_reads_the_latest_models_and_the_pairs_written_just_before() -> None:
    plan = make_plan(LoopConfig(**NEEDED, rounds=2, unlabelled="u.jsonl"))
    assert [(s.work, s.direction, s.round, s.forward, s.reverse, s.pairs) for s in plan] == [
        ("train", "forward", 0, None, None, None),
        ("train", "reverse", 0, "00-warmup-forward", None, None),
        ("synthesise", "reverse", 1, "00-warmup-forward", "01-warmup-reverse", None),
        ("train", "forward", 1, "00-warmup-forward", "01-warmup-reverse", "02-round1-synthesise-instructions"),
        ("synthesise", "forward", 1, "03-round1-train-forward", "01-warmup-reverse", None),
        ("train", "reverse", 1, "03-round1-train-forward", "01-warmup-reverse", "04-round1-synthesise-responses"),
        ("synthesise", "reverse", 2, "03-round1-train-forward", "05-round1-train-reverse", None),
        ("train", "forward", 2, "03-round1-train-forward", "05-round1-train-reverse", plan[6].name),
        ("synthesise", "forward", 2, "07-round2-train-forward", "05-round1-train-reverse", None),
        ("train", "reverse", 2, "07-round2-train-forward", "05-round1-train-reverse", plan[8].name),
        ("augment", "reverse", 2, "07-round2-train-forward", "09-round2-train-reverse", None),
        ("filter", "forward", 2, "07-round2-train-forward", "09-round2-train-reverse", "10-augment"),
    ]
    bare = make_plan(LoopConfig(**NEEDED, rounds=1, warmup_epochs=0))
    assert [stage.work for stage in bare] == ["synthesise", "train"] * 2


# ---- pairs ----


def test_unlabelled_responses_are_found_by_any_usual_name(tmp_path: Path) -> None:
    config = LoopConfig(**NEEDED)
    for field in ("completion", "response", "output", "text"):
        source = write_lines(tmp_path / f"{field}.jsonl", [{"id": "a", field: "yes"}, {"id": "b", field: " "}])
        found = read_unlabelled(source, config)
        assert [(p.id, p.instruction, p.response, p.status) for p in found.pairs] == [
            ("a", "", "yes", "ok"),
            ("b", "", " ", "empty_response"),
        ]
    source = write_lines(tmp_path / "named.jsonl", [{"answer": "yes", "text": "no"}])
    named = read_unlabelled(source, LoopConfig(**NEEDED, response_field="answer"))
    assert [pair.response for pair in named.good] == ["yes"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"answer": "x"}], r"none of the fields completion, .* \(it has answer\); name one with response_field"),
        ([{"text": ""}], "none of its 1 rows holds a response in the field 'text'; the first row: empty_response"),
    ],
)
def test_unlabelled_files_without_responses(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_unlabelled(write_lines(tmp_path / "u.jsonl", rows), LoopConfig(**NEEDED))


def test_seeds_without_a_usable_row_say_why_the_first_is_none(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "s.jsonl", [{"q": "a", "a": "b"}])
    with pytest.raises(UserError, match="missing_field, line 1: found 'q', 'a'"):
        read_seeds(source, LoopConfig(**NEEDED))


def test_each_writer_writes_its_own_side_and_nothing_is_lost(tmp_path: Path) -> None:
    pair = Pair("p", 1, "what?", "that.", (Turn("system", "be brief"),))
    forward = written_row(pair, "forward", Written("ok", "new", tokens=2))
    assert forward["prompt"][-1] == {"role": "user", "content": "what?"}
    assert forward["completion"] == [{"role": "assistant", "content": "new"}]
    reverse = written_row(Pair("p", 1, "", "that."), "reverse", Written("ok", "new", tokens=2))
    assert (reverse["prompt"], reverse["completion"], reverse["synthetic"]) == ("new", "that.", True)
    cut = written_row(Pair("q", 2, "", "that."), "reverse", Written("unfinished", "half a", "too long", 9))
    assert cut["prompt"] is None
    assert cut["synthesis"] == {"status": "unfinished", "reason": "too long", "tokens": 9, "text": "half a"}
    path = Path(write_lines(tmp_path / "pairs.jsonl", [forward, reverse | {"id": "r"}, cut]))
    back = read_written(path)
    assert [(p.instruction, p.response, len(p.context)) for p in back] == [("what?", "new", 1), ("new", "that.", 0)]


def test_training_rows_have_one_form_and_know_who_wrote_them() -> None:
    plain, turned = Pair("a", 1, "x", "y"), Pair("b", 2, "x2", "y2", (Turn("user", "u"), Turn("assistant", "v")))
    assert training_rows([plain], []) == [{"prompt": "x", "completion": "y"}]
    rows = training_rows([plain], [turned])
    assert [row["synthetic"] for row in rows] == [False, True]
    assert rows[0]["prompt"] == [{"role": "user", "content": "x"}]
    assert [turn["content"] for turn in rows[1]["prompt"]] == ["u", "v", "x2"]


# ---- prompts and sampling ----


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("writer", ["forward", "reverse"])
def test_a_prompt_is_what_was_trained_on_up_to_the_missing_side(template: bool, writer: Any) -> None:
    tokenizer = byte_tokenizer() if template else byte_tokenizer(template=None)
    pairs = [Pair("a", 1, "why?", "so."), Pair("b", 2, status="bad_json", reason="line 2: broken")]
    prompts, refused = make_prompts(pairs, PairEncoder(tokenizer, close=True), writer, 8, 200)
    encoded = EncodedPair([], *(tokenizer(text, add_special_tokens=False).input_ids for text in ("why?", "so.")))
    trained = PairEncoder(tokenizer, close=True).sequences(encoded)[0 if writer == "forward" else 1]
    assert [prompt.row for prompt in prompts] == [0]
    assert prompts[0].ids == trained.ids[: trained.second_span[0]]
    assert refused == {1: Written("bad_json", reason="line 2: broken")}
    # what follows is the side that the writer writes, and a token at which writing stops
    side = encoded.y if writer == "forward" else encoded.x
    assert trained.ids[trained.second_span[0] :][:-1] == side
    assert trained.ids[-1] in stop_tokens(tokenizer)
    short, refused = make_prompts(pairs, PairEncoder(tokenizer, close=True), writer, 8, len(prompts[0].ids) + 7)
    assert not short
    assert refused[0].status == "too_long"
    assert "line 1" in refused[0].reason


def test_closing_changes_only_the_last_segment() -> None:
    tokenizer = byte_tokenizer(template=None)
    pair = EncodedPair([], [10, 11], [12])
    for plain, closed in zip(
        PairEncoder(tokenizer).sequences(pair), PairEncoder(tokenizer, close=True).sequences(pair), strict=True
    ):
        assert closed.ids == [*plain.ids, tokenizer.eos_token_id]
        assert (closed.first_span, closed.pool_span) == (plain.first_span, plain.pool_span)
        assert closed.second_span == (plain.second_span[0], plain.second_span[1] + 1)
    assert PairEncoder(tokenizer, close=True).length(pair) == max(len(p.ids) for p in (closed, closed))
    chatml = byte_tokenizer()
    assert PairEncoder(chatml).sequences(pair) == PairEncoder(chatml, close=True).sequences(pair)


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 90, 7, 30, 5, 31, 64, 8]
    prompts = [Prompt(row, [0] * length) for row, length in enumerate(lengths)]
    batches = make_batches(prompts, 10, 100)
    assert sorted(p.row for batch in batches for p in batch) == list(range(8))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(len(p.ids) for p in batch) + 10) <= 100


def test_inverse_transform_draws_from_the_softmax() -> None:
    scores = torch.tensor([[1.0, -torch.inf, 0.0, 2.0]])
    n = 20_000
    uniforms = (torch.arange(n, dtype=torch.float32) / n)[:, None]  # every quantile once
    drawn = InverseTransform(uniforms, 3)(torch.zeros(n, 3, dtype=torch.long), scores.expand(n, 4)).argmax(-1)
    share = torch.bincount(drawn, minlength=4) / n
    torch.testing.assert_close(share, scores[0].softmax(-1), atol=2e-4, rtol=0)
    ends = torch.tensor([[0.0], [1 - 2**-24]])  # the lowest and the highest that is drawn
    low, high = InverseTransform(ends, 3)(torch.zeros(2, 3, dtype=torch.long), scores.expand(2, 4)).argmax(-1)
    assert (int(low), int(high)) == (0, 3)
    barred = torch.tensor([[-torch.inf, 0.0]])  # 0 draws no token of probability zero
    assert int(InverseTransform(torch.zeros(1, 1), 3)(torch.zeros(1, 3, dtype=torch.long), barred).argmax()) == 1


@pytest.fixture(scope="module")
def writing() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    return tiny_model(vocab=len(tokenizer)), tokenizer


def write(writing: tuple[Any, Any], rows: list[int], **sampling: Any) -> list[Written]:
    model, tokenizer = writing
    settings = {"max_new_tokens": 24, "temperature": 1.0, "top_p": 0.9, "seed": 3} | sampling
    writer = TransformersWriter(model, tokenizer, Sampling(**settings), "empty_response")
    return writer.write([Prompt(row, list(range(3, 9 + 4 * row))) for row in rows])


def test_a_row_is_drawn_the_same_whatever_it_shares_a_batch_with(writing: tuple[Any, Any]) -> None:
    together = write(writing, [0, 1, 2])
    assert together == write(writing, [0, 1, 2])
    assert [*write(writing, [2]), *write(writing, [1, 0])] == [together[2], together[1], together[0]]
    assert together != write(writing, [0, 1, 2], seed=4)
    assert not torch.equal(Sampling(4, 1.0, 1.0, 0).uniforms(0), Sampling(4, 1.0, 1.0, 0).uniforms(1))
    assert len({item.text for item in together}) == 3


@torch.no_grad()
def test_temperature_zero_takes_the_likeliest_tokens_behind_left_padding(writing: tuple[Any, Any]) -> None:
    model, tokenizer = writing
    for row, written in zip((0, 3), write(writing, [0, 3], temperature=0.0), strict=True):
        ids = list(range(3, 9 + 4 * row))
        made: list[int] = []
        while len(made) < 24 and not (made and made[-1] in stop_tokens(tokenizer)):
            made.append(int(model(torch.tensor([ids + made], device=DEVICE)).logits[0, -1].argmax()))
        assert written == read_off(made, tokenizer, set(stop_tokens(tokenizer)), "empty_response")


def test_what_is_written_ends_at_the_first_stop() -> None:
    tokenizer = byte_tokenizer()
    stops = set(stop_tokens(tokenizer))
    assert len(stops) == 3
    hi = tokenizer(" hi ").input_ids
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert read_off([*hi, end, *hi], tokenizer, stops, "e") == Written("ok", "hi", "", len(hi) + 1)
    assert read_off([end], tokenizer, stops, "e").status == "e"
    cut = read_off(hi, tokenizer, stops, "e")
    assert (cut.status, cut.text, cut.tokens) == ("unfinished", "hi", len(hi))


class Echo:
    """Writes its row number; dies after `batches`."""

    def __init__(self, batches: int = 99) -> None:
        self.left = batches

    def write(self, batch: list[Prompt]) -> list[Written]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return [Written("ok", f"row {prompt.row}", tokens=1) for prompt in batch]


class One:
    """A run of one process."""

    rank, count, first = 0, 1, True

    def agree(self, value: Any) -> Any:
        return value


class Two(One):
    """The second of two processes, which is told what the first knows."""

    def __init__(self, rank: int, known: list[int]) -> None:
        self.rank, self.count, self.first, self.known = rank, 2, rank == 0, known

    def agree(self, value: Any) -> Any:
        return self.known


def test_writing_goes_on_behind_the_last_batch_and_shares_between_processes(tmp_path: Path) -> None:
    pairs = [Pair(f"p{n}", n + 1, "x" * n, "y") for n in range(9)]
    prompts = [Prompt(row, [0] * (row + 1)) for row in range(9) if row != 4]
    batches = make_batches(prompts, 1, 12)
    assert len(batches) > 3
    refused = {4: Written("too_long", reason="line 5: too long")}
    said: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        write_missing_sides(batches, lambda: Echo(2), tmp_path, One(), said.append, "s")  # type: ignore[arg-type]
    assert [progress.pairs for progress in said] == [len(batches[0]), len(batches[0]) + len(batches[1])]
    for rank in (0, 1):
        write_missing_sides(batches, lambda: Echo(), tmp_path, Two(rank, [0, 1]), said.append, "s")  # type: ignore[arg-type]
    counts, tokens = collect(pairs, refused, batches, "forward", tmp_path)
    assert (counts, tokens) == ({"ok": 8, "too_long": 1}, 8)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [pair.id for pair in pairs]
    assert [row["completion"] for row in rows] == [f"row {n}" if n != 4 else None for n in range(9)]
    # all is there: the model is not even made
    write_missing_sides(batches, lambda: 1 / 0, tmp_path, One(), said.append, "s")  # type: ignore[arg-type, return-value]


# ---- the run's folder ----


def test_a_folder_is_claimed_by_one_run_with_its_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.lock()
    with pytest.raises(UserError, match="another run is at work there"):
        RunFolder(folder.path).lock()
    folder.claim({"config": {"rounds": 1}}, restart=False)
    folder.claim({"config": {"rounds": 1}}, restart=False)
    with pytest.raises(UserError, match=r"config\.rounds was 1, now 2.*--restart"):
        folder.claim({"config": {"rounds": 2}}, restart=False)
    folder.partial("00-a").mkdir()
    (folder.partial("00-a") / "rank-0.journal").touch()
    (folder.partial("00-a") / "out").write_text("x")
    assert not folder.done("00-a")
    folder.finish("00-a", {"n": 1})
    assert folder.done("00-a")
    assert folder.manifest("00-a") == {"n": 1}
    assert sorted(path.name for path in folder.stage("00-a").iterdir()) == ["out", "stage.json"]
    (folder.path / "notes.txt").write_text("mine")
    folder.claim({"config": {"rounds": 2}}, restart=True)
    assert not folder.done("00-a")
    assert (folder.path / "notes.txt").read_text() == "mine"
    folder.unlock()
    RunFolder(folder.path).lock()


def test_stages_of_a_killed_restart_are_not_taken_for_this_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock()
    folder.claim({"a": 1}, restart=False)
    folder.partial("00-a").mkdir()
    folder.finish("00-a", {})
    (tmp_path / "run.json").unlink()  # where a restart was killed
    folder.claim({"a": 2}, restart=False)
    assert not folder.done("00-a")


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\)"):
        RunFolder(tmp_path).lock()
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex").lock()
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    (folder.path / "run.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        folder.claim({}, restart=False)


# ---- the filter's scorer ----


def test_the_filter_asks_each_model_for_what_it_was_trained_for() -> None:
    tokenizer = byte_tokenizer()
    models = [tiny_model(vocab=len(tokenizer), seed=seed) for seed in (0, 1)]
    forward, reverse = (LoadedModel(model, tokenizer, f"m{n}", None, f"d{n}") for n, model in enumerate(models))
    rows = [{"instruction": f"ask {n}", "response": f"tell {n * n}"} for n in range(5)]
    used: list[str] = []
    both = MutualScorer(forward, reverse, used.append, bank=4).score(rows)
    assert used[:2] == ["forward", "reverse"]
    alone = [Scorer(model, bank=4).score(rows) for model in (forward, reverse)]
    for row, f, r in zip(both, *alone, strict=True):
        for name in ("nll_y_given_x", "nll_y", "pmi_forward", "semantic", "structural"):
            assert row[name] == f[name]
        for name in ("nll_x_given_y", "nll_x", "pmi_reverse"):
            assert row[name] == r[name] != f[name]
        total = row["tokens_y"] * f["pmi_forward"] + row["tokens_x"] * r["pmi_reverse"]
        assert row["mutual"] == pytest.approx(total / (2 * np.sqrt(row["tokens_x"] + row["tokens_y"])))
