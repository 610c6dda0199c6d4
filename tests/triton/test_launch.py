"""The launch path without a GPU: Triton's own runtime (arguments packed, tensor maps encoded, kernels launched) over a
stand-in for the driver (bench/stand_in.c) that refuses what CUDA's documentation forbids. Kernels are compiled, none
runs."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from triton import knobs
from triton.runtime.jit import JITFunction

from bench import stand_in
from bench.aot.limits import WALKS
from main_kernels import info_nce, linear_cross_entropy, linear_kl, pair_scores, sigmoid_loss
from main_kernels.backends.triton import configs, launch
from main_kernels.backends.triton.kernel_args import Sums
from main_kernels.backends.triton.launch import NO_FMA
from main_kernels.backends.triton.reduce_partials import reduce_partials

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
ROWS, COLUMNS, WIDTH = 520, 1100, 72  # tiles are ragged, and rows need padding

TARGETS, IDS, SCALE = torch.arange(ROWS), torch.arange(ROWS) // 2, torch.tensor(1.0, requires_grad=True)
LAUNCHED_CALLS = {
    "info_nce": lambda h, w: info_nce(h, w[:ROWS], workspace_bytes=0),
    "info_nce_kept_ids": lambda h, w: info_nce(h, w[:ROWS], pair_ids=IDS, label_smoothing=0.1, logit_scale=SCALE),
    "sigmoid_loss": lambda h, w: sigmoid_loss(h, w[:ROWS], logit_scale=SCALE, logit_bias=-SCALE, workspace_bytes=0),
    "linear_cross_entropy": lambda h, w: linear_cross_entropy(h, w, TARGETS, softcap=5.0, bias=torch.zeros(COLUMNS)),
    "linear_kl": lambda h, w: linear_kl(h, w, h.detach(), w.detach(), divergence="js"),
    "pair_scores": lambda h, w: pair_scores(h, w[:ROWS]).pmi.sum(),
}


WHOLE_ROWS = {"linear_kl": "divergence", "linear_cross_entropy": "row_loss"}
FUSED = ("info_nce", "sigmoid_loss", "pair_scores")  # they keep no scores


@pytest.fixture(scope="module")
def noted():
    """A device of compute capability 9.0 for tensors of the CPU. Gives the function that tells what it was asked."""
    if reason := stand_in.why_not():
        pytest.skip(reason)
    with stand_in.standing_in() as notes:
        yield notes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in LAUNCHED_CALLS),
        *((name, torch.float32) for name in LAUNCHED_CALLS if name not in FUSED[1:]),  # alike in float32
    ],
    ids=str,
)
def test_a_driver_accepts_every_launch(noted, name, dtype):
    hidden, weight = (torch.randn(n, WIDTH).to(dtype).requires_grad_() for n in (ROWS, COLUMNS))
    noted()
    torch.autograd.grad(LAUNCHED_CALLS[name](hidden, weight), (hidden, weight))
    notes = noted()
    asked = Counter(note.what for note in notes)
    if name in WHOLE_ROWS:
        assert asked[WHOLE_ROWS[name]] == 1
        assert not asked["reduce_rows"] + asked["score_grad"]
    elif dtype == torch.float32 or name not in FUSED:
        assert asked["reduce_rows"] + asked["reduce_both"] == asked["score_grad"] == 1
    else:
        assert asked["fused_reduce"] + asked["two_sided_reduce"] + asked["softplus_reduce"] == 1
        assert asked["target_scores"] == 1
        assert asked["exact_columns"] == asked["two_sided_reduce"]
        assert asked["map"] == 2 * sum(asked[walk] for walk in WALKS)
        assert all(note.size <= 2 * 132 for note in notes if note.what in WALKS)


def test_the_stand_in_driver_refuses_what_cuda_refuses(noted):
    encode = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    room = (ctypes.c_char * 192)()
    at, sizes, steps = -(-ctypes.addressof(room) // 64) * 64, (ctypes.c_uint64 * 2)(80, 520), (ctypes.c_uint * 2)(1, 1)

    def accepted(address=1 << 20, stride=160, box=(64, 128), swizzle=3):
        strides, boxes = (ctypes.c_uint64 * 1)(stride), (ctypes.c_uint * 2)(*box)
        given = 9, 2, ctypes.c_void_p(address), sizes, strides, boxes, steps, 0, swizzle, 2, 0  # 9: bfloat16
        return encode(ctypes.c_void_p(at), *given) == 0

    assert accepted()
    wrong = {"address": 8}, {"stride": 168}, {"stride": 144}, {"box": (64, 512)}, {"box": (128, 64)}, {"swizzle": 2}
    assert not any(accepted(**each) for each in wrong)


def test_launches_that_share_a_plan_are_specialised_alike(noted):
    """Triton's own binder says what a kernel is specialised for."""
    binder = reduce_partials.device_caches[0][4]
    options = {**configs.REDUCE_PARTIALS.options, **NO_FMA, "debug": False, "instrumentation_mode": ""}
    options["FIRST"] = False
    odd = torch.empty(65)[1:]  # its address is no multiple of 16 bytes
    vectors = torch.empty(64), torch.empty(64, dtype=torch.float64), odd, None
    whole = 1, 2, 16, 17, 2**31 - 1, 2**31, 2**31 + 16, 2**40
    bindings, nothing = {}, Sums(*[None] * len(Sums._fields))
    for count, n, total, rank in product(whole, whole, vectors, vectors):
        parts = nothing._replace(maximum=torch.empty(64), total=total, rank=rank)
        arguments = count, n, 0.5, parts, parts, None, None
        binding = binder(*arguments, **options)[1]
        assert bindings.setdefault(launch._kinds(arguments), binding) == binding
    assert len(bindings) > 100


def test_a_repeated_launch_needs_no_look_at_its_options(noted, monkeypatch):
    hidden, weight = (torch.randn(ROWS, WIDTH).bfloat16() for _ in range(2))
    want = []
    for _ in range(2):
        noted()
        info_nce(hidden, weight, workspace_bytes=0)
        want = [note[:2] for note in noted()]

    def refuse(*arguments, **options):  # type: ignore[no-untyped-def]
        pytest.fail("Triton's launcher was called")

    refuse.__module__ = JITFunction.__module__
    monkeypatch.setattr(JITFunction, "run", refuse)
    info_nce(hidden, weight, workspace_bytes=0)
    assert [note[:2] for note in noted()] == want


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28])
def test_the_last_kernel_of_a_reduction_finishes_it(noted, workspace_bytes):
    """No launch of torch's follows for a log-sum-exp, and where no score is kept, none precedes to fill the sums."""
    hidden, weight = (torch.randn(ROWS, WIDTH).bfloat16().requires_grad_() for _ in range(2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        info_nce(hidden, weight, workspace_bytes=workspace_bytes)
    ran = Counter(event.key for event in seen.events())
    assert not ran["aten::log"]
    assert workspace_bytes or not ran["aten::zeros"]


def test_a_profiler_sees_repeated_launches(noted):
    hidden, weight = (torch.randn(ROWS, WIDTH).bfloat16() for _ in range(2))
    seen = []
    hook = knobs.runtime.launch_enter_hook
    info_nce(hidden, weight, workspace_bytes=0)
    hook.add(watch := lambda metadata: seen.append(metadata.get()["name"]))
    try:
        info_nce(hidden, weight, workspace_bytes=0)
    finally:
        hook.remove(watch)
    assert "two_sided_reduce" in seen


# Functions called before the main launch (bench/host_time.py), with torch 2.13 and Triton 3.9 and a tenth to spare.
CALLS_BEFORE = {
    ("info_nce", "forward"): 300,
    ("info_nce", "backward"): 370,
    ("info_nce kept", "forward"): 146,
    ("info_nce kept", "backward"): 290,
    ("token_logprobs", "forward"): 166,
    ("linear_kl", "forward"): 284,
}


COUNT = f"""
import json, sys
from dataclasses import replace
from bench import host_time, stand_in
from bench.device.variants import TABLES
from main_kernels.backends.triton import configs
for table in TABLES:  # smaller tiles are compiled sooner; the host does the same for them
    tiles = (replace(tile, BLOCK_M=64, BLOCK_N=64) for tile in getattr(configs, table))
    setattr(configs, table, tuple(tiles))
with stand_in.standing_in(), host_time.pretended_products():
    for name in sys.argv[1:]:
        op = host_time.Op(name, {ROWS}, 1104, {WIDTH + 8})
        for _ in range(2):  # the first compiles
            counts = {{pass_: host_time.calls_before_main(getattr(op, pass_)) for pass_ in host_time.PASSES}}
        print(json.dumps([name, counts]))
"""


@pytest.mark.longest
def test_little_precedes_the_main_launch(noted):
    """In a process of its own: what other tests leave in a process adds calls."""
    names = dict.fromkeys(name for name, _ in CALLS_BEFORE)
    command = [sys.executable, "-c", COUNT, *names]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = dict(map(json.loads, done.stdout.splitlines()))
    for (name, pass_), limit in CALLS_BEFORE.items():
        assert counts[name][pass_] <= limit, (name, pass_)
