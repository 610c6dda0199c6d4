"""Streams: read by workers in any order, checked row by row, and trained on."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from datasets import Dataset, IterableDataset, concatenate_datasets
from main_align.errors import UserError
from main_align.training.dataset.reader import COLUMNS
from torch.utils.data import DataLoader

from tests.align.tiny_models import byte_tokenizer
from tests.align.training.dataset.readers import FORMS, LONG, USER, reader
from tests.align.training.step_gradients import PAIRS
from tests.align.training.trainers import ROWS, trainer_with


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


def test_a_stream_can_be_trained_on(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(PAIRS))
    trainer = trainer_with(tmp_path, dataset=stream, per_device_train_batch_size=2, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3
    with pytest.raises(UserError, match="not a stream"):
        trainer_with(tmp_path, dataset=stream, packing=True, max_steps=3)


def test_the_end_of_a_stream_is_the_beginning_of_the_next_step(tmp_path):
    """Transformers leaves the gradient of an incomplete step to the next one, which doubled it."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 4}
    runs = []
    for dataset in (ROWS.to_iterable_dataset(), concatenate_datasets([ROWS] * 3)):
        trainer = trainer_with(tmp_path, dataset=dataset, train_sampling_strategy="sequential", **settings)
        trainer.train()
        lines = [entry for entry in trainer.state.log_history if "loss" in entry]
        terms = [sum(value for name, value in line.items() if name.startswith("loss_")) for line in lines]
        assert [line["loss"] for line in lines] == pytest.approx(terms, rel=1e-5)
        runs.append((terms, [line["grad_norm"] for line in lines]))
    assert runs[0] == (pytest.approx(runs[1][0], rel=1e-5), pytest.approx(runs[1][1], rel=1e-4))
    short = trainer_with(tmp_path, dataset=ROWS.select(range(4)).to_iterable_dataset(), **settings)
    with pytest.raises(UserError, match=r"the stream has 2 batches.* gradient_accumulation_steps=3"):
        short.train()


def test_a_stream_without_pairs_is_an_error(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([LONG]))
    trainer = trainer_with(tmp_path, dataset=stream, over_length="drop", max_length=100)
    with pytest.raises(UserError, match="gave no pair"):
        trainer.train()


def test_a_shuffled_stream_with_workers_gives_all_rows_in_another_order_every_epoch(tmp_path):
    stream = ROWS.to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=8)
    settings = {"per_device_train_batch_size": 2, "dataloader_num_workers": 2, "max_steps": 8}
    trainer, seen = trainer_with(tmp_path, dataset=stream, **settings), []
    reading = trainer._hooked.forward

    def watched(model, batch, **options):  # type: ignore[no-untyped-def]
        seen.append(batch["pairs"]["targets"].tolist())
        return reading(model, batch, **options)

    trainer._hooked.forward = watched
    trainer.train()
    assert [entry["epoch"] for entry in trainer.state.log_history if "loss" in entry][3] == 0.5
    texts = byte_tokenizer().batch_decode(seen)
    for epoch in (texts[:4], texts[4:]):
        assert all(sum(pair["prompt"] in text for text in epoch) == 1 for pair in PAIRS)
    assert texts[:4] != texts[4:]
