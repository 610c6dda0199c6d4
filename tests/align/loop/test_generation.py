"""Prompts, sampling, and batches of generated texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

import torch
from main_align.data.pairs import Pair
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
from main_align.loop.model_pair import ModelInfo, VllmSource
from main_align.loop.pairs import (
    Generation,
)
from main_align.loop.vllm import VllmGenerator
from main_align.models.encoding import EncodedPair, PairEncoder

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model


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
