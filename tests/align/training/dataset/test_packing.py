"""Packing: bins within their capacity, and pairs that stay whole."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from main_align.errors import UserError
from main_align.training.dataset.packing import best_fit

from tests.align.training.trainers import trainer_with


def test_bins_hold_every_item_once_within_their_capacity():
    lengths = [7, 3, 5, 5, 2, 9, 1, 12]
    bins = best_fit(lengths, 10)
    assert sorted(place for each in bins for place in each) == list(range(8))
    assert all(sum(lengths[p] for p in each) <= 10 or len(each) == 1 for each in bins)
    assert len(bins) == 5  # 12 alone, 9+1, 7+3, 5+5, 2


def test_packing_keeps_pairs_whole(tmp_path):
    trainer = trainer_with(tmp_path, packing=True, max_length=100, per_device_train_batch_size=1, max_steps=1)
    seen = []
    for batch in trainer.get_train_dataloader():
        seen += batch["pairs"]["row"].tolist()
        assert batch["input_ids"].shape[1] <= 2 * 100 or len(batch["pairs"]["row"]) == 1
    assert sorted(seen) == list(range(8))
    assert len(trainer.train_dataset) < 8
    trainer.train()
    for strategy in ("wrapped", "bfd_split"):
        with pytest.raises(UserError, match="cuts samples"):
            trainer_with(tmp_path, packing=True, packing_strategy=strategy)
