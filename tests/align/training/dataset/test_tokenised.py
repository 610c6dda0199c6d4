"""Tokenised rows give the pair that their text gives, whatever the chat template."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from tests.align.models.test_encoding import LLAMA3, MISTRAL, SMOLLM2, ZEPHYR
from tests.align.tiny_models import CHATML, byte_tokenizer
from tests.align.training.dataset.readers import ASSISTANT, USER, X, Y, read, reader

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]")
SPECIAL += ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>")


@pytest.mark.parametrize("template", [CHATML, SMOLLM2, LLAMA3, MISTRAL, ZEPHYR, None])
@pytest.mark.parametrize("system", [False, True])
def test_a_data_set_tokenised_by_sfttrainer_gives_the_same_pair(tmp_path, template, system):
    """A data set prepared by TRL itself, markers and all, gives the ids that the texts give."""
    if system and template in (MISTRAL, None):
        pytest.skip("no place for a system turn")
    eos = {LLAMA3: "<|eot_id|>", ZEPHYR: "</s>", MISTRAL: "</s>"}.get(template, "<|im_end|>")
    tokenizer = byte_tokenizer(template=template, special=SPECIAL, bos="<s>", eos=eos)
    tokenizer.pad_token = "<|endoftext|>"
    turns = [{"role": "system", "content": "Be short."}] * system
    if template is None:
        record = {"prompt": X, "completion": Y}
    else:
        record = {"prompt": [*turns, USER], "completion": [ASSISTANT]}
    sft = SFTTrainer.__new__(SFTTrainer)  # only its preparation of data
    sft.completion_only_loss, sft._tokenizer, sft.chat_template = True, tokenizer, None
    args = SFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True)
    tokenised = sft._prepare_dataset(Dataset.from_list([record]), tokenizer, args, False, None, "train")
    (row,) = reader(tokenizer).prepare(tokenised, "train")
    texts = record if not system else {"messages": [*turns, USER, ASSISTANT]}
    (wanted,) = reader(tokenizer).prepare(Dataset.from_list([texts]), "train")
    assert tokenizer.decode(row["x_ids"]) == X
    assert tokenizer.decode(row["y_ids"]) == Y
    assert tokenizer.decode(row["context_ids"]).strip() == tokenizer.decode(wanted["context_ids"]).strip() or (
        template == SMOLLM2 and not system  # its default system prompt was tokenised, and is kept
    )


def test_masks_of_tokenised_rows_select_the_scored_tokens():
    ids = [10, 11, 12, 20, 21, 22, 23]
    forms = [
        {"input_ids": ids, "completion_mask": [0, 0, 0, 1, 1, 1, 1]},
        {"input_ids": ids, "labels": [-100, -100, -100, 20, 21, 22, 23]},
        {"input_ids": ids, "completion_mask": [0, 0, 0, 1, 1, 1, 1], "labels": [-100] * 3 + [20, -100, 22, 23]},
    ]
    for record in forms:
        (row,) = read([record], tokenizer=byte_tokenizer(template=None))
        assert (row["x_ids"], row["y_ids"]) == (ids[:3], ids[3:])
    assert row["y_mask"] == [1, 0, 1, 1]


def test_padding_of_tokenised_rows_is_removed():
    plain = {"input_ids": [10, 11, 12, 20, 21], "labels": [-100, -100, -100, 20, 21], "attention_mask": [1] * 5}
    padded = {"input_ids": [0, 0, *plain["input_ids"]], "labels": [-100] * 2 + plain["labels"]}
    padded |= {"attention_mask": [0, 0, 1, 1, 1, 1, 1]}
    first, second = read([plain, padded], tokenizer=byte_tokenizer(template=None))
    assert [first[name] for name in ("x_ids", "y_ids", "context_ids")] == [[10, 11, 12], [20, 21], []]
    assert [second[name] for name in ("x_ids", "y_ids", "context_ids")] == [[10, 11, 12], [20, 21], []]


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_format_of_the_data_set_changes_nothing(kind):
    record = {"input_ids": [10, 11, 12, 20], "labels": [-100, -100, -100, 20]}
    wanted, got = (
        list(reader(byte_tokenizer(template=None)).prepare(dataset, "train"))
        for dataset in (Dataset.from_list([record]), Dataset.from_list([record]).with_format(kind))
    )
    assert wanted == got
