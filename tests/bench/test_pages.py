"""The sentences about a machine that generated pages contain."""

from __future__ import annotations

import pytest

from bench.tables import processor


@pytest.mark.parametrize(("threads", "text"), [(1, "1 thread of X"), (2, "2 threads of X")])
def test_one_thread_is_a_singular(threads: int, text: str) -> None:
    assert processor({"threads": threads, "cpu": "X"}) == text
