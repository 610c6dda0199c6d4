"""Prefetch: work in steps, which can be done ahead while something else is waited for."""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Work that is done as far as there is time for it, and the rest when its result is wanted.

    Args:
        steps: yields after each step, and returns the result.
    """

    def __init__(self, steps: Generator[None, None, T]) -> None:
        self._result: T
        self._error: Exception | None = None
        self._steps = self._kept(steps)

    def step(self) -> bool:
        """Do the next step. Return False if none is left; what it raises is kept for `result`."""
        try:
            next(self._steps)
        except StopIteration:
            return False
        except Exception as error:
            self._error = error
            return False
        return True

    def result(self) -> T:
        """Do the steps that are left, and return the result.

        Raises:
            Exception: what a step raised.
        """
        while self.step():
            pass
        if self._error is not None:
            raise self._error
        return self._result

    def _kept(self, steps: Generator[None, None, T]) -> Generator[None, None, None]:
        self._result = yield from steps
