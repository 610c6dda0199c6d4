"""Prefetch: steps done ahead."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from main_align.scoring.prefetch import Prefetch


def counted(done: list[int], last: int = 3) -> Generator[None, None, str]:
    for number in range(last):
        done.append(number)
        yield
    return "all"


@pytest.mark.parametrize("ahead", range(5))
def test_the_result_does_not_depend_on_what_was_done_ahead(ahead):
    done: list[int] = []
    prefetch = Prefetch(counted(done))
    assert [prefetch.step() for _ in range(ahead)] == [True, True, True, False, False][:ahead]
    assert len(done) == min(ahead, 3)
    assert prefetch.result() == prefetch.result() == "all"
    assert done == [0, 1, 2]


def test_an_error_waits_for_the_one_who_wants_the_result():
    def failing() -> Generator[None, None, None]:
        yield
        raise OSError("the disk is gone")

    prefetch = Prefetch(failing())
    assert [prefetch.step() for _ in range(3)] == [True, False, False]
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            prefetch.result()
