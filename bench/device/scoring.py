"""time_scoring: a whole scorer with a model of the shape of Llama-3.2-1B, random weights, beside its bare products."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from main_align.data.pairs import Pair
from main_align.models.load import LoadedModel
from main_align.scoring import scorer as scoring
from main_align.scoring.measured import Measured, measure_windows
from main_align.scoring.scorer import Scorer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..products import Pack, Products
from .clock import WallClock
from .samples import SampleLog
from .timing import time_in_turn

LLAMA = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}
TINY = LLAMA | {"vocab_size": 1100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
WORDS = 1000
WINDOWS = 8
"""sort windows of a run: all but the first are prepared while the GPU works"""
AGREEMENT = 2e-2
"""nats per token in 16 bits"""
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|>' }}{% endfor %}"


def time_scoring(device: str, dtype: torch.dtype, log: SampleLog, *, smoke: bool) -> bool:
    """Time `Scorer.measure` in turn with its products: as it is, compiled, and one micro-batch at a time.

    Args:
        device: "cuda" or "cpu".
        dtype: dtype of the model.
        log: receives a "row" record and the samples: seconds of a run, and processor time of its host's thread.
        smoke: a tiny model and a few pairs.

    Returns:
        True if every run of ours gives the same log-likelihoods.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**(TINY if smoke else LLAMA))).to(dtype).eval()
    pairs = some_pairs(24 if smoke else 1024)
    tokenizer = word_tokenizer()

    def scorer(**options: Any) -> Scorer:
        loaded = LoadedModel(copy.deepcopy(model), tokenizer, "random", None, "")
        return Scorer(loaded, **options)

    plain = scorer()
    size = window_size(pairs)
    passes = [plain.prepare(pairs[start : start + size]) for start in range(0, len(pairs), size)]
    shapes = [
        Pack([batch.tokens], sum(int(window.tokens_x[row] + window.tokens_y[row]) for row in batch.rows) * 2)
        for window in passes
        for batch in window.micro_batches
    ]
    products = Products(model, shapes, dtype, attention=False)
    runs: dict[str, Callable[[], Measured | None]] = {"products": products.run, "ours": partial(measured, plain, pairs)}
    runs["ours_one_at_a_time"] = partial(one_at_a_time, plain, pairs)
    tokens = sum(shape.lengths[0] for shape in shapes)
    name_of_dtype = str(dtype).removeprefix("torch.")
    key = f"scoring {tokens} tokens {name_of_dtype}"
    phases = dict.fromkeys(("ours", "ours_one_at_a_time", "ours_compiled"), "forward")
    row: dict[str, Any] = {"row": key, "case": "scoring", "shape": {"pairs": len(pairs), "tokens": tokens}}
    row |= {"dtype": name_of_dtype, "bytes_read": None, "floors": ["products"], "phases": phases}
    log.add("row", **row)
    try:
        runs["ours_compiled"] = partial(measured, scorer(compile=True), pairs)
    except Exception as error:  # without a C compiler; the others are timed
        log.add("missing", row=key, name="ours_compiled", reason=f"{type(error).__name__}: {str(error)[:300]}")
    found = {name: run() for name, run in runs.items()}  # and warm up
    time_in_turn(key, runs, WallClock(device), log, 2 if smoke else 5, seconds=0)
    nats = {name: of.likelihoods.logp / passes_tokens(of) for name, of in found.items() if of is not None}
    wrong = [name for name, of in nats.items() if not np.allclose(of, nats["ours"], rtol=0, atol=AGREEMENT)]
    log.add("differing", row=key, names=wrong)
    return not wrong


def measured(scorer: Scorer, pairs: list[Pair]) -> Measured:
    """Measure the pairs in WINDOWS windows."""
    return measure_windows(scorer, pairs, window_size(pairs))


def one_at_a_time(scorer: Scorer, pairs: list[Pair]) -> Measured:
    """Measure them with no micro-batch queued, as before they were."""
    with mock.patch.object(scoring, "QUEUED", 0):
        return measured(scorer, pairs)


def window_size(pairs: list[Pair]) -> int:
    """Return the number of pairs of a window."""
    return -(-len(pairs) // WINDOWS)


def passes_tokens(of: Measured) -> np.ndarray:
    """Return the tokens of each likelihood, [n, 4] in the order of LogpColumn."""
    x, y = of.columns["tokens_x"], of.columns["tokens_y"]
    return np.stack([y, y, x, x], 1)


def some_pairs(count: int) -> list[Pair]:
    """Return pairs of random words: some 60 in an instruction and 200 in a response, log-normal."""
    random = np.random.default_rng(0)

    def text(typical: int) -> str:
        length = int(np.clip(random.lognormal(np.log(typical), 0.6), 2, 8 * typical))
        return " ".join(f"w{number}" for number in random.integers(0, WORDS, length))

    return [Pair(str(number), number + 1, text(60), text(200)) for number in range(count)]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each of the words."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system", "?"]
    vocabulary = {name: number for number, name in enumerate([*names, *(f"w{number}" for number in range(WORDS))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": names[0], "eos_token": names[2], "extra_special_tokens": names[:3]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = TEMPLATE
    return tokenizer
