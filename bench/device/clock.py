"""Clock: device time and host time of one call, separately. WallClock: the time of a whole program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

MIN_HOLD, MAX_HOLD = 2e-4, 5e-2
CALIBRATION_CYCLES = 20_000_000


class Sample(NamedTuple):
    """One timed call, in seconds."""

    seconds: float
    """Between two events on the GPU; wall-clock time on a CPU."""
    host_seconds: float
    """Until the call returned to Python: argument checks, allocation and launches, if it does not synchronise."""
    held: bool
    """True if the GPU was still held back when the call returned, so that `seconds` contains no host time."""


class Clock:
    """Times calls on a GPU with events, or on a CPU with the wall clock.

    Before the first event, the L2 cache is overwritten and the GPU is kept busy for longer than the host needs to
    enqueue the call. The events then measure the kernels alone.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        if self.on_gpu:
            self._filler = torch.empty(
                2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.uint8, device=device
            )
            self._cycles_per_second = self._calibrate()

    def __call__(self, run: Callable[[], Any], hold: float = MAX_HOLD) -> Sample:
        """Time one call.

        Args:
            run: the call.
            hold: seconds for which the GPU is kept busy first. See `hold_for`.
        """
        if not self.on_gpu:
            begin = time.perf_counter()
            run()
            seconds = time.perf_counter() - begin
            return Sample(seconds, seconds, False)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._filler.zero_()
        torch.cuda._sleep(int(hold * self._cycles_per_second))
        start.record()
        begin = time.perf_counter()
        run()
        host_seconds = time.perf_counter() - begin
        held = not start.query()
        stop.record()
        torch.cuda.synchronize()
        return Sample(start.elapsed_time(stop) / 1e3, host_seconds, held)

    def hold_for(self, run: Callable[[], Any]) -> float:
        """Return twice the host time of a call that is already warmed up, within bounds."""
        return min(max(2 * self(run).host_seconds, MIN_HOLD), MAX_HOLD)

    def _calibrate(self) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(CALIBRATION_CYCLES)  # loads the kernel
        start.record()
        torch.cuda._sleep(CALIBRATION_CYCLES)
        stop.record()
        torch.cuda.synchronize()
        return CALIBRATION_CYCLES / (start.elapsed_time(stop) / 1e3)


class WallClock:
    """Times calls that wait for the GPU themselves, such as a scorer; its `host_seconds` are the thread's own work.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"

    def __call__(self, run: Callable[[], Any], hold: float = 0.0) -> Sample:
        """Time one call, from an idle GPU to an idle GPU. Nothing is held back."""
        self._wait()
        begin, worked = time.perf_counter(), time.thread_time()
        run()
        worked = time.thread_time() - worked
        self._wait()
        return Sample(time.perf_counter() - begin, worked, False)

    def hold_for(self, run: Callable[[], Any]) -> float:
        """Return 0."""
        return 0.0

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
