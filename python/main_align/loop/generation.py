"""Writes the missing side of pairs with a causal model: prompts, batches and the sampler.

The prompt is the sequence that was trained on, up to where the missing side begins. Rows are sampled by
inverting the cumulative distribution at uniform numbers that belong to the row (its seed and number),
so what a row becomes does not depend on which rows it shares a batch with, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ..data.pairs import Pair
from ..models.chat_template import special_tokens
from ..models.encoding import EncodedPair, PairEncoder
from .config import Direction
from .pairs import Written


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row to be continued: its number in the input, and the tokens before the missing side."""

    row: int
    ids: list[int]


@dataclass(frozen=True)
class Sampling:
    """How the missing side is drawn."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    def uniforms(self, row: int) -> Tensor:
        """float32[max_new_tokens] in [0, 1): the numbers at which row `row` is drawn."""
        draws = np.random.default_rng((self.seed, row)).random(self.max_new_tokens, dtype=np.float32)
        return torch.from_numpy(draws)


def make_prompts(
    pairs: Sequence[Pair], encoder: PairEncoder, writer: Direction, max_new_tokens: int, context: int
) -> tuple[list[Prompt], dict[int, Written]]:
    """The prompts of all rows that can be continued within `context` tokens, and why the others cannot be."""
    refused = {row: Written(pair.status, reason=pair.reason) for row, pair in enumerate(pairs) if pair.status != "ok"}
    for row, pair in enumerate(pairs):
        if row not in refused and (problem := encoder.context_problem(pair.context)):
            refused[row] = Written("unsupported_turns", reason=f"{pair.where}: {problem}")
    rows = [row for row in range(len(pairs)) if row not in refused]
    given = [pairs[row].instruction if writer == "forward" else pairs[row].response for row in rows]
    texts = [(text, "") if writer == "forward" else ("", text) for text in given]
    prompts = []
    for row, encoded in zip(rows, encoder.encode(texts, [pairs[row].context for row in rows]), strict=True):
        ids = _prompt(encoder, encoded, writer)
        if problem := encoder.unknown_token(ids):
            refused[row] = Written("unknown_token", reason=f"{pairs[row].where}: it holds {problem}")
            continue
        if len(ids) + max_new_tokens <= context:
            prompts.append(Prompt(row, ids))
            continue
        reason = (
            f"{pairs[row].where}: a prompt of {len(ids)} tokens and max_new_tokens {max_new_tokens} "
            f"exceed the model's context of {context}"
        )
        refused[row] = Written("too_long", reason=reason)
    return prompts, refused


def _prompt(encoder: PairEncoder, pair: EncodedPair, writer: Direction) -> list[int]:
    sequence = encoder.sequences(pair)[0 if writer == "forward" else 1]
    return sequence.ids[: sequence.second_span[0]]


def make_batches(prompts: Sequence[Prompt], max_new_tokens: int, batch_tokens: int) -> list[list[Prompt]]:
    """Batches of prompts of about one length: at most `batch_tokens` tokens, padding and new ones included."""
    batches: list[list[Prompt]] = []
    for prompt in sorted(prompts, key=lambda prompt: (len(prompt.ids), prompt.row)):
        width = len(prompt.ids) + max_new_tokens  # the longest so far
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
        batches[-1].append(prompt)
    return batches


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: every special one, since text holds none and each end of turn is one."""
    ids = {tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)}
    return sorted({*ids, tokenizer.eos_token_id} - {None, tokenizer.unk_token_id})


def read_off(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, stops: set[int], empty: str) -> Written:
    """The text of generated tokens up to the first stop; a status where it is empty or has no end."""
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    text = str(tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)).strip()
    tokens = len(ids) if end is None else end + 1
    if end is None:
        return Written("unfinished", text, f"no end of turn within max_new_tokens {tokens}", tokens)
    if not text:
        return Written(empty, "", "the model ended its turn without writing any text", tokens)
    return Written("ok", text, "", tokens)


class TransformersWriter:
    """Batched `model.generate`. The model is in eval mode on its device and stays as it is."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, empty: str) -> None:
        self.model, self.tokenizer, self.sampling, self.empty = model, tokenizer, sampling, empty
        self.stops = stop_tokens(tokenizer)
        # the model's own defaults (a repetition penalty, say) are no part of the run's settings
        self.model.generation_config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,  # the last processor leaves exactly one token, which greedy decoding takes
            eos_token_id=self.stops,
            pad_token_id=self.stops[0],
            bos_token_id=tokenizer.bos_token_id,
        )

    @torch.inference_mode()
    def write(self, batch: Sequence[Prompt]) -> list[Written]:
        """What the model writes after each prompt."""
        device, width = self.model.device, max(len(prompt.ids) for prompt in batch)
        ids = torch.full(
            (len(batch), width), self.stops[0], dtype=torch.int64, device="cpu"
        )  # [B, W], padded on the left
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids, dtype=torch.int64, device="cpu")
            mask[row, width - len(prompt.ids) :] = 1
        made = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_processor=self._processors(batch, width),
        )
        return [read_off(row, self.tokenizer, set(self.stops), self.empty) for row in made[:, width:].tolist()]

    def _processors(self, batch: Sequence[Prompt], width: int) -> LogitsProcessorList:
        s = self.sampling
        if s.temperature == 0:
            return LogitsProcessorList()
        draw = InverseTransform(torch.stack([s.uniforms(prompt.row) for prompt in batch]), width)
        nucleus = [TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
        return LogitsProcessorList([TemperatureLogitsWarper(float(s.temperature)), *nucleus, draw])


class InverseTransform(LogitsProcessor):
    """Draws from the softmax of the scores and leaves the token drawn: the first whose cumulative
    probability exceeds the row's uniform number for this step.

    Args:
        uniforms: float32[B, steps], in [0, 1).
        width: tokens of the prompts, padding included.
    """

    def __init__(self, uniforms: Tensor, width: int) -> None:
        self.uniforms, self.width = uniforms, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids int64[B, W], scores [B, V] to scores of which all but one are -inf."""
        u = self.uniforms[:, input_ids.shape[1] - self.width].to(scores.device, torch.float64)
        total = scores.double().softmax(-1).cumsum(-1)
        token = torch.searchsorted(total, (u * total[:, -1])[:, None], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)
