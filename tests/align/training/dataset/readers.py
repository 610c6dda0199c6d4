"""read and reader: a PairReader on the byte tokenizer, and one pair in every form."""

from __future__ import annotations

from datasets import Dataset
from main_align.models.encoding import PairEncoder
from main_align.training.dataset.reader import PairReader

from tests.align.tiny_models import byte_tokenizer

X, Y = "Name a prime.", "Seven is one."
USER, ASSISTANT = {"role": "user", "content": X}, {"role": "assistant", "content": Y}
FORMS = {
    "prompt_completion": {"prompt": X, "completion": Y},
    "turns": {"prompt": [USER], "completion": [ASSISTANT]},
    "messages": {"messages": [USER, ASSISTANT]},
    "conversations": {"conversations": [{"from": "human", "value": X}, {"from": "gpt", "value": Y}]},
    "instruction_response": {"instruction": X, "response": Y},
    "alpaca": {"instruction": "Name a", "input": "prime.", "output": Y},
}
LONG = {"prompt": "x" * 300, "completion": "y" * 100}


def reader(tokenizer=None, **options):  # type: ignore[no-untyped-def]
    return PairReader(PairEncoder(tokenizer or byte_tokenizer()), **{"max_length": 256, **options})


def read(records, **options):  # type: ignore[no-untyped-def]
    return reader(**options).prepare(Dataset.from_list(records), "train")
