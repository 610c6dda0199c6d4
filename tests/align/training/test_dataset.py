"""Data sets of every form give the same pairs; rows that cannot be trained are named."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from datasets import Dataset, IterableDataset
from main_align.data.components import connected
from main_align.errors import UserError
from main_align.models.encoding import PairEncoder
from main_align.training.dataset.packing import best_fit
from main_align.training.dataset.reader import COLUMNS, PairReader
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from tests.align.models.test_encoding import LLAMA3, MISTRAL, SMOLLM2, ZEPHYR
from tests.align.tiny_models import CHATML, byte_tokenizer

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
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]")
SPECIAL += ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>")


def reader(tokenizer=None, **options):  # type: ignore[no-untyped-def]
    return PairReader(PairEncoder(tokenizer or byte_tokenizer()), **{"max_length": 256, **options})


def read(records, **options):  # type: ignore[no-untyped-def]
    return reader(**options).prepare(Dataset.from_list(records), "train")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pair(form):
    tokenizer = byte_tokenizer()
    (row,) = read([FORMS[form]])
    x = X if form != "alpaca" else "Name a\nprime."
    assert row["x_ids"] == tokenizer(x, add_special_tokens=False).input_ids
    assert row["y_ids"] == tokenizer(Y, add_special_tokens=False).input_ids
    assert row["context_ids"] == []
    assert row["y_mask"] == [1] * len(row["y_ids"])
    assert set(row) == set(COLUMNS)


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


def test_earlier_turns_are_context():
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}, USER, ASSISTANT]
    tokenizer = byte_tokenizer()
    (row,) = read([{"messages": turns}])
    assert tokenizer.decode(row["context_ids"]).count("<|im_start|>") == 2
    assert tokenizer.decode(row["x_ids"]) == X


def test_duplicates_share_a_group():
    records = [("a", "1"), ("b", "1"), ("b", "2"), ("c", "3"), ("d", "2")]
    groups = list(read([{"prompt": x, "completion": y} for x, y in records])["group"])
    assert groups[0] == groups[1] == groups[2] == groups[4]
    assert groups[3] not in groups[:3]
    assert connected([5, 6, 7, 5], [1, 2, 2, 3]) == [3, 2, 2, 3] or len(set(connected([5, 6, 7, 5], [1, 2, 2, 3]))) == 2


def test_a_prepared_data_set_is_left_as_it_is():
    prepared = read([FORMS["messages"]])
    assert reader().prepare(prepared, "train") is prepared


def test_rows_of_a_stream_are_numbered_and_checked_as_they_are_read():
    records = [FORMS["messages"], {"messages": [USER, {"role": "assistant", "content": "Eleven."}]}]
    stream = IterableDataset.from_generator(lambda: iter(records))
    rows = list(reader().prepare(stream, "train"))
    assert [row["row"] for row in rows] == [0, 1]
    assert rows[0]["group"] != rows[1]["group"]
    broken = IterableDataset.from_generator(lambda: iter([*records, {"messages": [USER]}]))
    with pytest.raises(UserError, match="row 2: 'messages' ends in user"):
        list(reader().prepare(broken, "train"))


def stream_of(count: int, shards: int) -> IterableDataset:
    rows = [{"prompt": f"Count to {n}.", "completion": "One.", "other": n} for n in range(count)]
    return Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_every_row_of_a_stream_is_read_by_one_worker(workers):
    rows = reader().prepare(stream_of(16, 4), "train")
    seen = list(DataLoader(rows, batch_size=None, num_workers=workers))
    assert sorted(byte_tokenizer().decode(row["x_ids"]) for row in seen) == sorted(f"Count to {n}." for n in range(16))
    assert set(seen[0]) == set(COLUMNS) == set(rows.column_names)


def test_a_shuffled_stream_has_another_order_in_every_epoch():
    rows = reader().prepare(stream_of(16, 4).shuffle(seed=0, buffer_size=16), "train")
    orders = []
    for epoch in (0, 0, 1):
        rows.set_epoch(epoch)
        orders.append([row["x_ids"] for row in rows])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_a_bad_row_of_a_stream_is_named_with_its_worker():
    rows = [{"prompt": "x", "completion": "" if n == 3 else "y"} for n in range(4)]
    stream = reader().prepare(Dataset.from_list(rows).to_iterable_dataset(num_shards=2), "train")
    with pytest.raises(UserError, match="row 1 of worker 1: the response has no text"):
        list(DataLoader(stream, batch_size=None, num_workers=2))


def test_pairs_over_length_in_a_stream_are_left_out():
    stream = IterableDataset.from_generator(lambda: iter([FORMS["prompt_completion"], LONG]))
    assert [row["row"] for row in reader(over_length="drop").prepare(stream, "train")] == [0]


LONG = {"prompt": "x" * 300, "completion": "y" * 100}


def test_pairs_over_length_are_refused_dropped_or_truncated(caplog):
    records = [FORMS["prompt_completion"], LONG]
    with pytest.raises(UserError, match=r"1 rows of the train.*row 1: \d+ tokens \(300 \+ 100 .*over_length='drop'"):
        read(records)
    assert list(read(records, over_length="drop")["row"]) == [0]
    assert "1 pairs over 256 tokens left out" in caplog.text
    cut = read(records, over_length="truncate")[1]
    encoder = PairEncoder(byte_tokenizer())
    assert len(cut["x_ids"]) + len(cut["y_ids"]) + encoder.overhead == 256
    assert len(cut["x_ids"]) == pytest.approx(3 * len(cut["y_ids"]), abs=3)
    assert len(cut["y_mask"]) == len(cut["y_ids"])
    with pytest.raises(UserError, match="the train data set has no pair of at most 256 tokens"):
        read([LONG], over_length="drop")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "Just text."}, "has the columns 'text', and no pair can be read"),
        ({"input_ids": [1, 2, 3]}, "has no mask of the response"),
        ({"input_ids": [5, 6], "labels": [-100, -100]}, "row 0: no token of it is scored"),
        ({"input_ids": [5, 6], "labels": [-100, 6], "seq_lengths": [1, 1]}, "row 0: it is several sequences packed"),
        ({"prompt": "", "completion": "y"}, "row 0: the instruction has no text"),
        ({"prompt": "x", "completion": "  "}, "row 0: the response has no text"),
        ({"prompt": "x", "completion": None}, "row 0: the field 'completion' is null"),
        ({"messages": [USER]}, "row 0: 'messages' ends in user"),
        ({"messages": [USER, {"role": "system", "content": "s"}, USER, ASSISTANT]}, "row 0: a system turn must be"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused_by_name(record, message):
    with pytest.raises(UserError, match=message):
        read([record])


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "clock"}}}
TURN = {"role": "assistant", "content": ""}
SAID = {
    "tools": ({"tools": [CALL]}, "its column 'tools' would be dropped: tools are not part of the prompt"),
    "tools_as_json": ({"tools": json.dumps([CALL])}, "its column 'tools'"),
    "template_kwargs": (
        {"chat_template_kwargs": {"enable_thinking": False}},
        "column 'chat_template_kwargs'.*set tokenizer",
    ),
    "undesirable": ({"label": False}, "its column 'label' is false.*filter such rows out"),
    "mismatched": ({"aligned": False}, "its column 'aligned' is false"),
    "sound": ({"audio": {"array": np.zeros(2), "path": None}}, "its column 'audio' would be dropped"),
    "image": ({"images": [b"png"]}, "its column 'images' would be dropped: only text"),
    "synthetic_text": ({"synthetic": "false"}, "its column 'synthetic' must be true or false, got 'false'"),
    "calls": (
        {"messages": [USER, {**TURN, "tool_calls": [CALL]}, USER, ASSISTANT]},
        "'tool_calls' of turn 2 of 'messages'",
    ),
    "result": (
        {"messages": [USER, {"role": "tool", "content": "6"}, ASSISTANT]},
        "turn 2 of 'messages' has the role 'tool'",
    ),
    "reasoning": ({"messages": [USER, {**ASSISTANT, "reasoning_content": "Hm."}]}, "'reasoning_content' of turn 2"),
    "weight": ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "the last turn of 'messages' has the weight 0"),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("streamed", [False, True])
def test_columns_that_are_not_part_of_the_pair_are_refused_or_reported(name, streamed):
    said, message = SAID[name]
    record = said if "messages" in said else {"prompt": X, "completion": Y, **said}
    dataset = IterableDataset.from_generator(lambda: iter([record])) if streamed else Dataset.from_list([record])
    with pytest.raises(UserError, match=f"row 0: .*{message}"):
        list(reader().prepare(dataset, "train"))


def test_empty_columns_are_ignored():
    """Arrow gives every row the columns and keys that one of them has."""
    nothing = {"tools": None, "chat_template_kwargs": {"enable_thinking": None}, "images": [], "label": True}
    turns = [{**turn, "tool_calls": None, "reasoning_content": ""} for turn in (USER, ASSISTANT)]
    rows = read(
        [{"messages": turns, "tools_of_others": "[]", **nothing}, {"messages": turns, **nothing, "tools": "null"}]
    )
    assert [row["row"] for row in rows] == [0, 1]


@pytest.mark.parametrize("streamed", [False, True])
def test_text_that_is_dropped_is_reported_once(streamed, caplog):
    said = {"id": "one", "domain": "numbers", "score": 0.5, "note": None, "echo": "a prime"}
    records = [{"prompt": X, "completion": Y, **said}] * 3
    dataset = Dataset.from_list(records)
    assert len(list(reader().prepare(dataset.to_iterable_dataset() if streamed else dataset, "train"))) == 3
    assert [record.message for record in caplog.records if "dropped" in record.message] == [
        "train data set: text that is not part of the pairs is dropped: columns 'domain'. If a column belongs to the "
        "instruction, join them with dataset.map"
    ]
    caplog.clear()
    read([FORMS["alpaca"], {**FORMS["alpaca"], "input": ""}])
    assert not caplog.records


def test_padding_of_tokenised_rows_is_removed():
    plain = {"input_ids": [10, 11, 12, 20, 21], "labels": [-100, -100, -100, 20, 21], "attention_mask": [1] * 5}
    padded = {"input_ids": [0, 0, *plain["input_ids"]], "labels": [-100] * 2 + plain["labels"]}
    padded |= {"attention_mask": [0, 0, 1, 1, 1, 1, 1]}
    first, second = read([plain, padded], tokenizer=byte_tokenizer(template=None))
    assert [first[name] for name in ("x_ids", "y_ids", "context_ids")] == [[10, 11, 12], [20, 21], []]
    assert [second[name] for name in ("x_ids", "y_ids", "context_ids")] == [[10, 11, 12], [20, 21], []]


def test_many_bad_rows_are_counted_and_some_named():
    with pytest.raises(UserError, match=r"9 rows .*row 0: .*row 4: .*and 4 more"):
        read([{"prompt": "x", "completion": ""}] * 9)


def test_other_types_than_data_sets_are_refused():
    with pytest.raises(UserError, match=r"is of type list.*Dataset.from_list"):
        reader().prepare([FORMS["messages"]], "train")
    with pytest.raises(UserError, match="has a transform"):
        reader().prepare(Dataset.from_list([FORMS["messages"]]).with_transform(lambda rows: rows), "train")


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_format_of_the_data_set_changes_nothing(kind):
    record = {"input_ids": [10, 11, 12, 20], "labels": [-100, -100, -100, 20]}
    wanted, got = (
        list(reader(byte_tokenizer(template=None)).prepare(dataset, "train"))
        for dataset in (Dataset.from_list([record]), Dataset.from_list([record]).with_format(kind))
    )
    assert wanted == got


def test_an_empty_data_set_is_an_error():
    with pytest.raises(UserError, match="has no rows"):
        reader().prepare(Dataset.from_dict({"prompt": [], "completion": []}), "train")


def test_bins_hold_every_item_once_within_their_capacity():
    lengths = [7, 3, 5, 5, 2, 9, 1, 12]
    bins = best_fit(lengths, 10)
    assert sorted(place for each in bins for place in each) == list(range(8))
    assert all(sum(lengths[p] for p in each) <= 10 or len(each) == 1 for each in bins)
    assert len(bins) == 5  # 12 alone, 9+1, 7+3, 5+5, 2
