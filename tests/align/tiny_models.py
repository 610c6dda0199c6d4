"""Tiny models for the tests: a two-layer model and a byte-level tokenizer with a chat template.

Random weights score nothing sensibly, but they score the same way twice, which is what tests need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the tests put their models, and trainers put them


def cpu_only(why: str) -> pytest.MarkDecorator:
    """For a test that a GPU cannot run."""
    return pytest.mark.skipif(DEVICE != "cpu", reason=f"on the CPU only: {why}")


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(
    *,
    template: str | None = CHATML,
    special: tuple[str, ...] = SPECIAL,
    bos: str | None = "<|endoftext|>",
    eos: str | None = "<|im_end|>",
) -> PreTrainedTokenizerFast:
    """A tokenizer of one token per byte (so any text has one), with special tokens first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*special, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, extra_special_tokens=list(special)
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(
    kind: Literal["llama", "mistral"] = "llama",
    *,
    vocab: int = 259,
    seed: int = 0,
    **config: object,
) -> LlamaForCausalLM | MistralForCausalLM:
    """Two layers, hidden 32, four query heads on two key heads; Mistral's window is 16 tokens. The same weights on any
    device."""
    settings: dict[str, object] = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    if kind == "mistral":
        settings["sliding_window"] = 16
    settings |= config
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(seed)
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**settings))
        else:
            model = MistralForCausalLM(MistralConfig(**settings))
    return model.eval().to(DEVICE)


def tiny_model_folder(folder: Path, kind: Literal["llama", "mistral"] = "llama", **config: object) -> Path:
    """A folder with a saved tiny model and its tokenizer, as `Scorer(model=folder)` loads it."""
    path = folder / f"tiny-{kind}"
    tokenizer = byte_tokenizer()
    tiny_model(kind, vocab=len(tokenizer), **config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
