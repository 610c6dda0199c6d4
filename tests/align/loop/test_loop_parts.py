"""Unit tests of MAIN's loop: settings, plan, pairs, prompts, sampling, run folder and scorer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

import torch
from main_align.data.pairs import Pair, Turn
from main_align.errors import UserError
from main_align.loop import LoopConfig, read_config
from main_align.loop.batch_journal import generate_batches
from main_align.loop.generate_stage import collect_generations
from main_align.loop.generation import (
    InverseTransform,
    Prompt,
    Sampling,
    TransformersGenerator,
    decode_generation,
    make_batches,
    make_prompts,
    stop_token_ids,
)
from main_align.loop.model_pair import ModelInfo, ScoringModels, VllmSource
from main_align.loop.mutual_filter import MutualScorer
from main_align.loop.pairs import (
    Generation,
    generation_row,
    read_generations,
    read_pairs,
    read_unpaired_responses,
    training_rows,
)
from main_align.loop.plan import make_plan
from main_align.loop.run_dir import RunDir
from main_align.loop.vllm import VllmGenerator
from main_align.models.encoding import EncodedPair, PairEncoder
from main_align.models.load import LoadedModel
from main_align.scoring.scorer import Scorer

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model

NEEDED: dict[str, Any] = {"seed_pairs": "s.jsonl", "output_dir": "run"}


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---- settings ----


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
        ({"keep": 1.5}, "keep must be at most 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"use_peft": "yes"}, "use_peft must be true or false"),
        ({"filter_by": "best"}, "filter_by must be one of forward_nll, mutual"),
        ({"lora_target_modules": [1]}, "lora_target_modules must be text or a list of text"),
        ({"reverse_model": "other"}, "set use_peft to false"),
        ({"instruction_field": "q"}, "needs response_field"),
        ({"training": {"seed": 1}}, "training.seed is set by seed"),
        ({"training": {"eos_token": "</s>"}}, "training.eos_token is set by the model's tokenizer"),
        ({"training": {"save_strategy": "epoch"}}, "training.save_strategy is set by the loop"),
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
    ],
)
def test_an_invalid_assignment_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config(None, NEEDED, [text])


# ---- plan ----


def test_every_stage_reads_the_latest_models_and_generated_pairs() -> None:
    plan = make_plan(LoopConfig(**NEEDED, rounds=2, unpaired_responses="u.jsonl"))
    assert [(s.work, s.direction, s.round, s.forward_stage, s.reverse_stage, s.pairs_stage) for s in plan] == [
        ("train", "forward", 0, None, None, None),
        ("train", "reverse", 0, "00-warmup-forward", None, None),
        ("generate", "reverse", 1, "00-warmup-forward", "01-warmup-reverse", None),
        ("train", "forward", 1, "00-warmup-forward", "01-warmup-reverse", "02-round1-generate-instructions"),
        ("generate", "forward", 1, "03-round1-train-forward", "01-warmup-reverse", None),
        ("train", "reverse", 1, "03-round1-train-forward", "01-warmup-reverse", "04-round1-generate-responses"),
        ("generate", "reverse", 2, "03-round1-train-forward", "05-round1-train-reverse", None),
        ("train", "forward", 2, "03-round1-train-forward", "05-round1-train-reverse", plan[6].name),
        ("generate", "forward", 2, "07-round2-train-forward", "05-round1-train-reverse", None),
        ("train", "reverse", 2, "07-round2-train-forward", "05-round1-train-reverse", plan[8].name),
        ("augment", "reverse", 2, "07-round2-train-forward", "09-round2-train-reverse", None),
        ("filter", "forward", 2, "07-round2-train-forward", "09-round2-train-reverse", "10-augment"),
    ]
    bare = make_plan(LoopConfig(**NEEDED, rounds=1, warmup_epochs=0))
    assert [stage.work for stage in bare] == ["generate", "train"] * 2


# ---- pairs ----


def test_unpaired_responses_are_read_from_any_common_field(tmp_path: Path) -> None:
    config = LoopConfig(**NEEDED)
    for field in ("completion", "response", "output", "text"):
        source = write_lines(tmp_path / f"{field}.jsonl", [{"id": "a", field: "yes"}, {"id": "b", field: " "}])
        found = read_unpaired_responses(source, config)
        assert [(p.id, p.instruction, p.response, p.status) for p in found.pairs] == [
            ("a", "", "yes", "ok"),
            ("b", "", " ", "empty_response"),
        ]
    source = write_lines(tmp_path / "named.jsonl", [{"answer": "yes", "text": "no"}])
    named = read_unpaired_responses(source, LoopConfig(**NEEDED, response_field="answer"))
    assert [pair.response for pair in named.usable] == ["yes"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"answer": "x"}], r"none of the fields completion, .* \(it has answer\); name the field with response_field"),
        ([{"text": ""}], "none of its 1 rows has a response in the field 'text'; the first row: empty_response"),
    ],
)
def test_unpaired_responses_without_a_response_are_an_error(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_unpaired_responses(write_lines(tmp_path / "u.jsonl", rows), LoopConfig(**NEEDED))


def test_seed_pairs_without_a_usable_row_report_the_first_row(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "s.jsonl", [{"q": "a", "a": "b"}])
    with pytest.raises(UserError, match="missing_field, line 1: found 'q', 'a'"):
        read_pairs(source, LoopConfig(**NEEDED))


def test_a_generated_row_keeps_the_input_side_and_the_status(tmp_path: Path) -> None:
    pair = Pair("p", 1, "what?", "that.", (Turn("system", "be brief"),))
    forward = generation_row(pair, "forward", Generation("ok", "new", tokens=2))
    assert forward["prompt"][-1] == {"role": "user", "content": "what?"}
    assert forward["completion"] == [{"role": "assistant", "content": "new"}]
    reverse = generation_row(Pair("p", 1, "", "that."), "reverse", Generation("ok", "new", tokens=2))
    assert (reverse["prompt"], reverse["completion"], reverse["synthetic"]) == ("new", "that.", True)
    cut = generation_row(Pair("q", 2, "", "that."), "reverse", Generation("unfinished", "half a", "too long", 9))
    assert cut["prompt"] is None
    assert cut["generation"] == {"status": "unfinished", "reason": "too long", "tokens": 9, "text": "half a"}
    path = Path(write_lines(tmp_path / "pairs.jsonl", [forward, reverse | {"id": "r"}, cut]))
    back = read_generations(path)
    assert [(p.instruction, p.response, len(p.context)) for p in back] == [("what?", "new", 1), ("new", "that.", 0)]


def test_training_rows_share_one_format_and_mark_synthetic_pairs() -> None:
    plain, turned = Pair("a", 1, "x", "y"), Pair("b", 2, "x2", "y2", (Turn("user", "u"), Turn("assistant", "v")))
    assert training_rows([plain], []) == [{"prompt": "x", "completion": "y"}]
    rows = training_rows([plain], [turned])
    assert [row["synthetic"] for row in rows] == [False, True]
    assert rows[0]["prompt"] == [{"role": "user", "content": "x"}]
    assert [turn["content"] for turn in rows[1]["prompt"]] == ["u", "v", "x2"]


# ---- prompts and sampling ----


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("writer", ["forward", "reverse"])
def test_a_prompt_is_the_training_sequence_up_to_the_missing_side(template: bool, writer: Any) -> None:
    tokenizer = byte_tokenizer() if template else byte_tokenizer(template=None)
    pairs = [Pair("a", 1, "why?", "so."), Pair("b", 2, status="bad_json", reason="line 2: broken")]
    prompts, refused = make_prompts(pairs, PairEncoder(tokenizer, close=True), writer, 8, 200)
    encoded = EncodedPair([], *(tokenizer(text, add_special_tokens=False).input_ids for text in ("why?", "so.")))
    trained = PairEncoder(tokenizer, close=True).sequences(encoded)[0 if writer == "forward" else 1]
    assert [prompt.row for prompt in prompts] == [0]
    assert prompts[0].ids == trained.ids[: trained.second_span[0]]
    assert refused == {1: Generation("bad_json", reason="line 2: broken")}
    # what follows is the side that the writer writes, and a token at which writing stops
    side = encoded.y if writer == "forward" else encoded.x
    assert trained.ids[trained.second_span[0] :][:-1] == side
    assert trained.ids[-1] in stop_token_ids(tokenizer)
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
    frequency = torch.bincount(drawn, minlength=4) / n
    torch.testing.assert_close(frequency, scores[0].softmax(-1), atol=2e-4, rtol=0)
    ends = torch.tensor([[0.0], [1 - 2**-24]])  # the lowest and the highest that is drawn
    low, high = InverseTransform(ends, 3)(torch.zeros(2, 3, dtype=torch.long), scores.expand(2, 4)).argmax(-1)
    assert (int(low), int(high)) == (0, 3)
    barred = torch.tensor([[-torch.inf, 0.0]])  # 0 draws no token of probability zero
    assert int(InverseTransform(torch.zeros(1, 1), 3)(torch.zeros(1, 3, dtype=torch.long), barred).argmax()) == 1


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    return tiny_model(vocab=len(tokenizer)), tokenizer


def generate(loaded: tuple[Any, Any], rows: list[int], **sampling: Any) -> list[Generation]:
    model, tokenizer = loaded
    settings = {"max_new_tokens": 24, "temperature": 1.0, "top_p": 0.9, "seed": 3} | sampling
    generator = TransformersGenerator(model, tokenizer, Sampling(**settings), "empty_response")
    return generator.generate([Prompt(row, list(range(3, 9 + 4 * row))) for row in rows])


def test_a_sampled_text_does_not_depend_on_the_batch(loaded: tuple[Any, Any]) -> None:
    together = generate(loaded, [0, 1, 2])
    assert together == generate(loaded, [0, 1, 2])
    assert [*generate(loaded, [2]), *generate(loaded, [1, 0])] == [together[2], together[1], together[0]]
    assert together != generate(loaded, [0, 1, 2], seed=4)
    assert not torch.equal(Sampling(4, 1.0, 1.0, 0).uniforms(0), Sampling(4, 1.0, 1.0, 0).uniforms(1))
    assert len({item.text for item in together}) == 3


@torch.no_grad()
def test_temperature_zero_is_greedy_decoding_with_left_padding(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    for row, written in zip((0, 3), generate(loaded, [0, 3], temperature=0.0), strict=True):
        ids = list(range(3, 9 + 4 * row))
        made: list[int] = []
        while len(made) < 24 and not (made and made[-1] in stop_token_ids(tokenizer)):
            made.append(int(model(torch.tensor([ids + made], device=DEVICE)).logits[0, -1].argmax()))
        assert written == decode_generation(made, tokenizer, set(stop_token_ids(tokenizer)), "empty_response")


def test_a_text_ends_at_the_first_stop_token() -> None:
    tokenizer = byte_tokenizer()
    stops = set(stop_token_ids(tokenizer))
    assert len(stops) == 3
    hi = tokenizer(" hi ").input_ids
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert decode_generation([*hi, end, *hi], tokenizer, stops, "e") == Generation("ok", "hi", "", len(hi) + 1)
    assert decode_generation([end], tokenizer, stops, "e").status == "e"
    cut = decode_generation(hi, tokenizer, stops, "e")
    assert (cut.status, cut.text, cut.tokens) == ("unfinished", "hi", len(hi))


class Echo:
    """A generator that returns the row number and raises KeyboardInterrupt after `batches`."""

    def __init__(self, batches: int = 99) -> None:
        self.left = batches

    def generate(self, batch: list[Prompt]) -> list[Generation]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return [Generation("ok", f"row {prompt.row}", tokens=1) for prompt in batch]


class One:
    """A run of one process."""

    rank, world_size, is_main = 0, 1, True

    def broadcast(self, value: Any) -> Any:
        return value


class Two(One):
    """One of two processes; `finished` are the batches that the main process broadcasts."""

    def __init__(self, rank: int, finished: list[int]) -> None:
        self.rank, self.world_size, self.is_main, self.finished = rank, 2, rank == 0, finished

    def broadcast(self, value: Any) -> Any:
        return self.finished


def test_generation_resumes_after_the_last_batch_and_is_shared_between_processes(tmp_path: Path) -> None:
    pairs = [Pair(f"p{n}", n + 1, "x" * n, "y") for n in range(9)]
    prompts = [Prompt(row, [0] * (row + 1)) for row in range(9) if row != 4]
    batches = make_batches(prompts, 1, 12)
    assert len(batches) > 3
    refused = {4: Generation("too_long", reason="line 5: too long")}
    said: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        generate_batches(batches, lambda: Echo(2), tmp_path, One(), said.append, "s")  # type: ignore[arg-type]
    assert [progress.pairs for progress in said] == [len(batches[0]), len(batches[0]) + len(batches[1])]
    for rank in (0, 1):
        generate_batches(batches, lambda: Echo(), tmp_path, Two(rank, [0, 1]), said.append, "s")  # type: ignore[arg-type]
    counts, tokens = collect_generations(pairs, refused, batches, "forward", tmp_path)
    assert (counts, tokens) == ({"ok": 8, "too_long": 1}, 8)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [pair.id for pair in pairs]
    assert [row["completion"] for row in rows] == [f"row {n}" if n != 4 else None for n in range(9)]
    # all batches are finished, so the model is not loaded
    generate_batches(batches, lambda: 1 / 0, tmp_path, One(), said.append, "s")  # type: ignore[arg-type, return-value]


def test_vllm_gets_prompts_adapter_and_one_seed_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is not installed here; the stand-ins record the calls."""
    tokenizer, calls = byte_tokenizer(), {}
    answer = [*tokenizer(" hi ").input_ids, tokenizer.eos_token_id]

    class Engine:
        def __init__(self, **options: Any) -> None:
            calls["engine"] = options

        def generate(self, prompts: Any, parameters: Any, **options: Any) -> list[Any]:
            calls["generate"] = prompts, parameters, options
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=answer)]) for _ in prompts]

    vllm = SimpleNamespace(LLM=Engine, SamplingParams=lambda **options: options)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.lora", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=lambda *values: values))
    info = ModelInfo("base", "digest", tokenizer, 64, PairEncoder(tokenizer))
    source, sampling = VllmSource("base", Path("adapter"), 4), Sampling(8, 0.7, 0.9, 3)
    generator = VllmGenerator(source, info, sampling, "empty_response", dtype="float32")
    assert [each.text for each in generator.generate([Prompt(0, [5]), Prompt(1, [6, 7])])] == ["hi", "hi"]
    prompts, parameters, options = calls["generate"]
    assert prompts == [{"prompt_token_ids": [5]}, {"prompt_token_ids": [6, 7]}]
    assert parameters[0]["seed"] != parameters[1]["seed"]
    assert options["lora_request"][-1] == "adapter"
    assert (calls["engine"]["max_model_len"], calls["engine"]["max_lora_rank"]) == (64, 4)


# ---- the run folder ----


def test_a_run_dir_belongs_to_one_run_and_its_settings(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "deep" / "run")
    folder.lock()
    with pytest.raises(UserError, match="another run is using this folder"):
        RunDir(folder.path).lock()
    folder.claim({"config": {"rounds": 1}}, restart=False)
    folder.claim({"config": {"rounds": 1}}, restart=False)
    with pytest.raises(UserError, match=r"config\.rounds was 1, now 2.*--restart"):
        folder.claim({"config": {"rounds": 2}}, restart=False)
    folder.partial_dir("00-a").mkdir()
    (folder.partial_dir("00-a") / "rank-0.journal").touch()
    (folder.partial_dir("00-a") / "out").write_text("x")
    assert not folder.is_finished("00-a")
    folder.finish("00-a", {"n": 1})
    assert folder.is_finished("00-a")
    assert folder.read_manifest("00-a") == {"n": 1}
    assert sorted(path.name for path in folder.stage_dir("00-a").iterdir()) == ["out", "stage.json"]
    (folder.path / "notes.txt").write_text("mine")
    folder.claim({"config": {"rounds": 2}}, restart=True)
    assert not folder.is_finished("00-a")
    assert (folder.path / "notes.txt").read_text() == "mine"
    folder.unlock()
    RunDir(folder.path).lock()


def test_stages_left_by_a_killed_restart_are_deleted(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.lock()
    folder.claim({"a": 1}, restart=False)
    folder.partial_dir("00-a").mkdir()
    folder.finish("00-a", {})
    (tmp_path / "run.json").unlink()  # where a restart was killed
    folder.claim({"a": 2}, restart=False)
    assert not folder.is_finished("00-a")


def test_a_folder_with_other_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"contains other files \(thesis.tex\)"):
        RunDir(tmp_path).lock()
    with pytest.raises(UserError, match="is a file"):
        RunDir(tmp_path / "thesis.tex").lock()
    folder = RunDir(tmp_path / "run")
    folder.lock()
    (folder.path / "run.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        folder.claim({}, restart=False)


# ---- the filter's scorer ----


def test_the_filter_scores_each_direction_with_its_own_model() -> None:
    tokenizer = byte_tokenizer()
    models = [tiny_model(vocab=len(tokenizer), seed=seed) for seed in (0, 1)]
    forward, reverse = (LoadedModel(model, tokenizer, f"m{n}", None, f"d{n}") for n, model in enumerate(models))
    rows = [{"instruction": f"ask {n}", "response": f"tell {n * n}"} for n in range(5)]
    used: list[str] = []
    both = MutualScorer(ScoringModels(forward, reverse, used.append), bank=4).score(rows)
    assert used[:2] == ["forward", "reverse"]
    alone = [Scorer(model, bank=4).score(rows) for model in (forward, reverse)]
    for row, f, r in zip(both, *alone, strict=True):
        for name in ("nll_y_given_x", "nll_y", "nll_end", "pmi_forward", "semantic", "structural"):
            assert row[name] == f[name]
        for name in ("nll_x_given_y", "nll_x", "pmi_reverse"):
            assert row[name] == r[name] != f[name]
        total = np.sqrt(row["tokens_y"]) * f["pmi_forward"] + np.sqrt(row["tokens_x"]) * r["pmi_reverse"]
        assert row["mutual"] == pytest.approx(total / 2)
        assert row["mutual_novel"] == pytest.approx(row["mutual"])  # nothing is copied
