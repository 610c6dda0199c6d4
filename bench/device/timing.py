"""time_case and profile_case: one op timed in turn with floors and peers, or run once for a profiler."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..cases.case import DTYPES, Row
from ..cases.device import DeviceCase
from ..kernels import AGREEMENT, differing, warm_up
from .clock import Clock, WallClock
from .machine import gpu_state
from .samples import SampleLog

MIN_ROUNDS, MAX_ROUNDS = 7, 30
SECONDS_PER_ROW = 4.0
"""A row ends after this time once it has MIN_ROUNDS."""


def time_case(
    case: DeviceCase, shape: Mapping[str, int], dtype: str, clock: Clock, log: SampleLog, *, peers: bool, rounds: int
) -> bool:
    """Time one row: the contenders take turns, round after round, on the same inputs.

    Args:
        case: the op.
        shape: one of its shapes.
        dtype: a key of DTYPES.
        clock: measures each call.
        log: receives a "row" record, then samples, peak memory and missing contenders.
        peers: time the peers and dense torch as well, and compare all values and gradients with eager torch.
        rounds: minimum number of rounds.

    Returns:
        True if every contender of ours ran and agrees with eager torch, if that was compared.
    """
    torch.compiler.reset()
    gc.collect()
    if clock.on_gpu:
        torch.cuda.empty_cache()
    torch.manual_seed(0)
    row = case.build(DTYPES[dtype], **shape)
    place = case.shapes.index(shape) if shape in case.shapes else 0
    for name in list(row.contenders):
        if name in (case.leave_out or {}).get(place, ()) or not (peers or name.startswith("ours")):
            del row.contenders[name]
    key = f"{case.name} {' '.join(f'{n}={s}' for n, s in shape.items())} {dtype}{' with peers' if peers else ''}"
    log.add(
        "row",
        row=key,
        case=case.name,
        shape=dict(shape),
        dtype=dtype,
        bytes_read=row.bytes_read,
        floors=list(row.floors),
        phases={name: contender.phase for name, contender in row.contenders.items()},
    )
    floors = {name: fastest(ways, clock) for name, ways in row.floors.items()}
    computed, missing = warm_up(row)
    for name, reason in missing.items():
        log.add("missing", row=key, name=name, reason=reason)
    wrong = differing(row, computed, AGREEMENT[dtype]) if "eager" in computed else []
    if "eager" in computed:
        log.add("differing", row=key, names=wrong)
    time_in_turn(key, {**floors, **{name: row.contenders[name].run for name in computed}}, clock, log, rounds)
    for name in computed if clock.on_gpu else ():
        log.add("peak", row=key, name=name, megabytes=peak_megabytes(row.contenders[name].run, row))
    return not any(name.startswith("ours") for name in (*missing, *wrong))


def time_in_turn(
    key: str,
    runs: Mapping[str, Callable[[], Any]],
    clock: Clock | WallClock,
    log: SampleLog,
    rounds: int,
    seconds: float = SECONDS_PER_ROW,
) -> dict[str, list[float]]:
    """Time calls that are warmed up, round after round. Each round begins with another one.

    After `rounds` rounds it ends once they took `seconds`.

    Returns:
        The seconds of each call, which the log has as well.
    """
    names = list(runs)
    hold = {name: clock.hold_for(run) if clock.on_gpu else 0.0 for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in names}
    log.add("state", row=key, state=gpu_state() if clock.on_gpu else None)
    begin = time.perf_counter()
    for done in range(max(rounds, MAX_ROUNDS)):
        if done >= rounds and time.perf_counter() - begin >= seconds:
            break
        turn = done % len(names)
        for name in names[turn:] + names[:turn]:
            sample = clock(runs[name], hold[name])
            taken[name].append(sample.seconds)
            log.add("sample", row=key, name=name, **sample._asdict())
    log.add("state", row=key, state=gpu_state() if clock.on_gpu else None)
    return taken


def fastest(ways: list[Callable[[], Any]], clock: Clock) -> Callable[[], Any]:
    """Run every variant of a floor once, then return the one with the lowest median of three timed runs."""
    for way in ways:
        way()
    if len(ways) == 1:
        return ways[0]
    medians = [sorted(clock(way).seconds for _ in range(3))[1] for way in ways]
    return ways[medians.index(min(medians))]


def peak_megabytes(run: Callable[[], Any], row: Row) -> float:
    """Return the peak of allocated GPU memory during a call, in 10^6 bytes, beyond inputs and gradients."""
    for leaf in row.leaves:
        leaf.grad = None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    gradients = sum(leaf.grad.nbytes for leaf in row.leaves if leaf.grad is not None)
    return round((torch.cuda.max_memory_allocated() - before - gradients) / 1e6, 1)


def profile_case(case: DeviceCase, shape: Mapping[str, int], dtype: str) -> None:
    """Run each of our contenders once to warm up and once between cudaProfilerStart and cudaProfilerStop."""
    torch.manual_seed(0)
    row = case.build(DTYPES[dtype], **shape)
    ours = [contender for name, contender in row.contenders.items() if name.startswith("ours")]
    for contender in ours:
        contender.run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStart()
    for contender in ours:
        contender.run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()
