"""Tests of the sweep's ops that need a device: graphs, streams, a device that is not the current one, inductor, no
synchronisation, memory, and the same bits in every run."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from main_kernels import (
    cyclic_consistency,
    info_nce,
    linear_cross_entropy,
    linear_kl,
    mutual_information,
    mutual_information_bounds,
    pair_scores,
    relational_scores,
    row_logsumexp,
    sequence_logprobs,
    sigmoid_loss,
    token_logprobs,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

DEVICE_CALLS = {
    "info_nce_kept": lambda h, w, t: info_nce(h, w[: len(h)], temperature=0.5),
    "info_nce_recomputed": lambda h, w, t: info_nce(h, w[: len(h)], temperature=0.5, workspace_bytes=0),
    "token_logprobs": lambda h, w, t: token_logprobs(h, w, t, ignore_index=None).sum(),
    "linear_cross_entropy": lambda h, w, t: linear_cross_entropy(h, w, t, ignore_index=None),
    "linear_kl": lambda h, w, t: linear_kl(h, w, h.detach().roll(1, 0), w.detach(), reduction="sum"),
    "pair_scores": lambda h, w, t: pair_scores(h, w[: len(h)], temperature=0.5).pmi.sum(),
    "info_nce_ids": lambda h, w, t: info_nce(h, w[: len(h)], temperature=0.5, pair_ids=t, label_smoothing=0.1),
    "sigmoid_loss": lambda h, w, t: sigmoid_loss(
        h, w[: len(h)], logit_scale=h.new_full((), 0.5), logit_bias=h.new_full((), -1.0), workspace_bytes=0
    ),
    "row_logsumexp": lambda h, w, t: row_logsumexp(h, w, workspace_bytes=0).sum(),
    "mutual_information": lambda h, w, t: mutual_information(h, w[: len(h)], temperature=9.0, estimator="smile"),
    "mutual_information_bounds": lambda h, w, t: sum(
        mutual_information_bounds(h, w[: len(h)], temperature=9.0).values()
    ),
    "sequence_logprobs": lambda h, w, t: sequence_logprobs(
        h, w, t, segment_ids=t % 7, segments=7, ignore_index=None
    ).sum(),
    "cyclic_consistency": lambda h, w, t: cyclic_consistency(h, w[: len(h)], within=0.5),
    "relational_scores": lambda h, w, t: relational_scores(h, w[: len(h)]).sum(),
}
each = pytest.mark.parametrize("name", DEVICE_CALLS)
LONG = 10**8  # cycles


def problem(rows=520, columns=1100, width=72, *, device="cuda", seed=0):
    """hidden [rows, width] and weight [columns, width], bfloat16 leaves, and targets [rows]; by default a few tiles,
    ragged, of operands that need padding, and large enough for products in bfloat16."""
    generator = torch.Generator(device).manual_seed(seed)
    draw = {"device": device, "generator": generator}
    hidden, weight = (torch.randn(n, width, **draw).bfloat16().requires_grad_() for n in (rows, columns))
    return hidden, weight, torch.randint(columns, (rows,), **draw)


def step(call, hidden, weight, targets):
    """The value and both gradients."""
    value = call(hidden, weight, targets)
    return value.detach(), *torch.autograd.grad(value, (hidden, weight))


def assert_same_bits(got, want):
    for name, a, b in zip(("value", "d_hidden", "d_weight"), got, want, strict=True):
        assert a.isfinite().all(), name
        assert torch.equal(a.cpu(), b.cpu()), name


@each
def test_a_graph_replays_with_new_inputs(name):
    call, given = DEVICE_CALLS[name], problem()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(call, *given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step(call, *given)
    for seed in (1, 2):
        fresh = problem(seed=seed)
        with torch.no_grad():
            for old, new in zip(given, fresh, strict=True):
                old.copy_(new)
        graph.replay()
        assert_same_bits(got, step(call, *fresh))


@each
def test_another_stream_is_respected_behind_long_work(name):
    """A launch on another stream would read what is not there yet."""
    call, (hidden, weight, targets) = DEVICE_CALLS[name], problem()
    want = step(call, hidden, weight, targets)
    late = torch.zeros_like(hidden)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        late.copy_(hidden.detach())
        got = step(call, late.requires_grad_(), weight, targets)
    stream.synchronize()
    assert_same_bits(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
@each
def test_kernels_run_on_the_device_of_the_tensors(name):
    first = problem(device="cuda:0")
    with torch.cuda.device(0):
        second = [t.detach().to("cuda:1").requires_grad_(t.requires_grad) for t in first]
        got = step(DEVICE_CALLS[name], *second)
        assert torch.cuda.current_device() == 0
    assert all(t.get_device() == 1 for t in got)
    assert_same_bits(got, step(DEVICE_CALLS[name], *first))


@each
def test_inductor_gives_the_same_values(name):
    torch.compiler.reset()
    given = problem()
    got = step(torch.compile(DEVICE_CALLS[name], fullgraph=True), *given)
    for a, b in zip(got, step(DEVICE_CALLS[name], *given), strict=True):
        torch.testing.assert_close(a, b)


@contextmanager
def no_synchronisation():
    """Inside, an operation that synchronises with the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each
def test_the_host_does_not_synchronise(name):
    call, given = DEVICE_CALLS[name], problem()
    step(call, *given)  # compiles
    with no_synchronisation():
        step(call, *given)


def test_a_synchronisation_is_detected():
    with no_synchronisation(), pytest.raises(RuntimeError):
        torch.ones(3, device="cuda").nonzero()


@pytest.mark.parametrize(
    ("name", "rows", "columns"), [("info_nce_recomputed", 65536, 65536), ("linear_cross_entropy", 65536, 131072)]
)
def test_the_scores_are_never_stored(name, rows, columns):
    given = problem(rows, columns, 64)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(DEVICE_CALLS[name], *given)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < rows * columns * 2 / 4, f"{peak >> 20} MiB"  # the scores alone, in bfloat16, over 4


@each
def test_repeated_runs_give_the_same_bits(name):
    """Several chunks of many tiles, more than there are programs at a time."""
    given = problem(9001, 9301, 136)
    want = step(DEVICE_CALLS[name], *given)
    for _ in range(3):
        assert_same_bits(step(DEVICE_CALLS[name], *given), want)
