"""TransformersGenerator, make_prompts and make_batches: generate the missing side of pairs with a causal model.

The prompt is the training sequence up to the missing side. Sampling inverts the cumulative distribution at uniform
numbers that depend only on the seed and the row's number. A row's text therefore does not depend on the other rows of
its batch, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
from ..models.forward import without_gradients
from .config import Direction
from .pairs import Generation


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row to generate for: its number in the input, and the tokens before the missing side."""

    row: int
    ids: list[int]


class Generator(Protocol):
    """A backend: `TransformersGenerator` or `vllm.VllmGenerator`."""

    def generate(self, batch: Sequence[Prompt]) -> list[Generation]:
        """Generate one text per prompt."""
        ...


@dataclass(frozen=True)
class Sampling:
    """Sampling settings, as in LoopConfig, and the stage's seed."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    def uniforms(self, row: int) -> Tensor:
        """Return float32[max_new_tokens] in [0, 1): the random numbers of one row."""
        draws = np.random.default_rng((self.seed, row)).random(self.max_new_tokens, dtype=np.float32)
        return torch.from_numpy(draws)


def make_prompts(
    pairs: Sequence[Pair], encoder: PairEncoder, direction: Direction, max_new_tokens: int, context: int
) -> tuple[list[Prompt], dict[int, Generation]]:
    """Encode the prompts of all usable rows.

    Args:
        pairs: the input rows.
        encoder: encoder of the model.
        direction: "forward" generates responses, "reverse" instructions.
        max_new_tokens: tokens of the longest generated text.
        context: tokens of the longest sequence that the model accepts.

    Returns:
        The prompts, and a Generation with the reason for every other row, by row number.
    """
    skipped = {
        row: Generation(pair.status, reason=pair.reason) for row, pair in enumerate(pairs) if pair.status != "ok"
    }
    for row, pair in enumerate(pairs):
        if row not in skipped and (problem := encoder.context_problem(pair.context)):
            skipped[row] = Generation("unsupported_turns", reason=f"{pair.where}: {problem}")
    rows = [row for row in range(len(pairs)) if row not in skipped]
    texts = [(pairs[row].instruction, "") if direction == "forward" else ("", pairs[row].response) for row in rows]
    prompts = []
    for row, encoded in zip(rows, encoder.encode(texts, [pairs[row].context for row in rows]), strict=True):
        ids = _prompt_ids(encoder, encoded, direction)
        if problem := encoder.unknown_token(ids):
            skipped[row] = Generation("unknown_token", reason=f"{pairs[row].where}: it contains {problem}")
        elif len(ids) + max_new_tokens > context:
            reason = (
                f"{pairs[row].where}: a prompt of {len(ids)} tokens and max_new_tokens {max_new_tokens} "
                f"exceed the model's context of {context}"
            )
            skipped[row] = Generation("too_long", reason=reason)
        else:
            prompts.append(Prompt(row, ids))
    return prompts, skipped


def _prompt_ids(encoder: PairEncoder, pair: EncodedPair, direction: Direction) -> list[int]:
    sequence = encoder.sequences(pair)[0 if direction == "forward" else 1]
    return sequence.ids[: sequence.second_span[0]]


def make_batches(prompts: Sequence[Prompt], max_new_tokens: int, batch_tokens: int) -> list[list[Prompt]]:
    """Group prompts of similar length into batches of at most `batch_tokens`, including padding and new tokens."""
    batches: list[list[Prompt]] = []
    for prompt in sorted(prompts, key=lambda prompt: (len(prompt.ids), prompt.row)):
        width = len(prompt.ids) + max_new_tokens  # sorted, so this prompt is the longest of its batch
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
        batches[-1].append(prompt)
    return batches


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all special tokens: text contains none, and every end of turn is one."""
    ids = {tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)}
    return sorted({*ids, tokenizer.eos_token_id} - {None, tokenizer.unk_token_id})


def decode_generation(
    ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, stops: set[int], empty_status: str
) -> Generation:
    """Decode generated tokens up to the first stop token.

    Args:
        ids: the generated tokens.
        tokenizer: the model's tokenizer.
        stops: ids of the stop tokens.
        empty_status: status of a text without characters.

    Returns:
        The text with status "ok", "unfinished" (no stop token) or `empty_status`.
    """
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    text = str(tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)).strip()
    tokens = len(ids) if end is None else end + 1
    if end is None:
        return Generation("unfinished", text, f"no end of turn within max_new_tokens {tokens}", tokens)
    if not text:
        return Generation(empty_status, "", "the model ended its turn without any text", tokens)
    return Generation("ok", text, "", tokens)


class TransformersGenerator:
    """Generate with batched `model.generate`.

    Args:
        model: a causal model in eval mode on its device. Its generation config is replaced.
        tokenizer: the model's tokenizer.
        sampling: sampling settings.
        empty_status: status of a text without characters.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, empty_status: str) -> None:
        self.model, self.tokenizer, self.sampling, self.empty_status = model, tokenizer, sampling, empty_status
        self.stops = stop_token_ids(tokenizer)
        self.without_gradients = without_gradients(model)
        # replaced because the model's defaults (such as a repetition penalty) are not settings of the run
        self.model.generation_config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,  # the last logits processor leaves one token, and greedy decoding takes it
            eos_token_id=self.stops,
            pad_token_id=self.stops[0],
            bos_token_id=tokenizer.bos_token_id,
        )

    def generate(self, batch: Sequence[Prompt]) -> list[Generation]:
        """Generate one text per prompt."""
        device, width = self.model.device, max(len(prompt.ids) for prompt in batch)
        # [B, W], padded on the left
        ids = torch.full((len(batch), width), self.stops[0], dtype=torch.int64, device="cpu")
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids, dtype=torch.int64, device="cpu")
            mask[row, width - len(prompt.ids) :] = 1
        with self.without_gradients():
            output = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                logits_processor=self._processors(batch, width),
            )
        new_tokens = output[:, width:].tolist()
        return [decode_generation(row, self.tokenizer, set(self.stops), self.empty_status) for row in new_tokens]

    def _processors(self, batch: Sequence[Prompt], width: int) -> LogitsProcessorList:
        s = self.sampling
        if s.temperature == 0:
            return LogitsProcessorList()
        draw = InverseTransform(torch.stack([s.uniforms(prompt.row) for prompt in batch]), width)
        nucleus = [TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
        return LogitsProcessorList([TemperatureLogitsWarper(float(s.temperature)), *nucleus, draw])


class InverseTransform(LogitsProcessor):
    """Sample by inverse transform: keep the first token whose cumulative probability exceeds a uniform number.

    Args:
        uniforms: float32[B, steps], in [0, 1).
        width: tokens of the prompts, including padding.
    """

    def __init__(self, uniforms: Tensor, width: int) -> None:
        self.uniforms, self.width = uniforms, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] with -inf everywhere except at the sampled token. input_ids: int64[B, W]."""
        u = self.uniforms[:, input_ids.shape[1] - self.width].to(scores.device, torch.float64)
        total = scores.double().softmax(-1).cumsum(-1)
        token = torch.searchsorted(total, (u * total[:, -1])[:, None], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)
