"""What every op promises whatever it computes: torch.library rules, compilation, determinism, no needless work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck

from main_kernels import (
    backends,
    info_nce,
    linear_cross_entropy,
    pair_scores,
    row_logsumexp,
    segment_pool,
    sequence_logprobs,
    sigmoid_loss,
    token_logprobs,
)
from main_kernels.sweep import backward, forward, plan, tiling
from main_kernels.sweep.signatures import SweepArgs

from .contract import BACKENDS, DEVICE, error

DEFAULTS = {
    "query_source": None,
    "key_source": None,
    "check_targets": True,
    "ignore_index": -1,
    "row_ids": None,
    "column_ids": None,
    "keep_target": True,
    "row_lse": True,
    "column_lse": False,
    "entropy": False,
    "ranks": False,
    "logit_sums": False,
    "softplus": False,
    "sigmoid": False,
    "bias": None,
    "clip": 0.0,
    "has_row_loss": False,
    "loss_weights": None,
    "label_smoothing": 0.0,
    "z_loss": 0.0,
}


def operands(rows=6, columns=11, width=5, dtype=torch.float32, grad=(True, True)):
    return (
        torch.randn(rows, width, dtype=dtype, requires_grad=grad[0]),
        torch.randn(columns, width, dtype=dtype, requires_grad=grad[1]),
    )


SWEEP_CALLS = {
    "token_logprobs": lambda q, k: token_logprobs(q, k, torch.arange(len(q))),
    "token_logprobs_masked": lambda q, k: token_logprobs(q, k, torch.arange(len(q)).where(q[:, 0] > 0, -100)),
    "token_logprobs_softcap": lambda q, k: token_logprobs(q, k, torch.arange(len(q)), softcap=2.0, temperature=0.7),
    "token_entropy": lambda q, k: token_logprobs(q, k, torch.arange(len(q)), softcap=9.0, return_stats=True).entropy,
    "token_stats": lambda q, k: torch.stack(
        token_logprobs(
            q, k, torch.arange(len(q)).where(q[:, 0] > 0, -100), bias=torch.arange(len(k)) / 9, return_stats=True
        )[:2]
    ),
    "info_nce": lambda q, k: info_nce(q, k[: len(q)], temperature=0.5, reduction="none"),
    "info_nce_recomputed": lambda q, k: info_nce(q, k[: len(q)], temperature=0.5, workspace_bytes=0),
    "info_nce_query": lambda q, k: info_nce(q, k[: len(q)], temperature=0.5, direction="query", workspace_bytes=0),
    "info_nce_ids": lambda q, k: info_nce(q, k[: len(q)], temperature=0.5, pair_ids=torch.arange(len(q)) // 2),
    "info_nce_smooth": lambda q, k: info_nce(
        q,
        k[: len(q)],
        label_smoothing=0.1,
        pair_weights=torch.arange(len(q)) + 1.0,
        negatives=k[len(q) :],
        temperature=0.5,
    ),
    "info_nce_own_negatives": lambda q, k: info_nce(
        q, k[: len(q)], temperature=0.5, direction="query", negatives=k[:2].expand(len(q), 2, k.shape[1])
    ),
    "sigmoid_loss": lambda q, k: sigmoid_loss(
        q, k[: len(q)], logit_scale=torch.tensor(0.5), logit_bias=torch.tensor(-1.0), reduction="none"
    ),
    "sigmoid_loss_ids": lambda q, k: sigmoid_loss(
        q,
        k[: len(q)],
        logit_scale=torch.tensor(0.5),
        logit_bias=torch.tensor(-1.0),
        pair_ids=torch.arange(len(q)) // 2,
        workspace_bytes=0,
    ),
    "linear_cross_entropy": lambda q, k: linear_cross_entropy(
        q,
        k,
        torch.arange(len(q)),
        token_weights=torch.arange(len(q)).to(torch.float32),
        label_smoothing=0.1,
        z_loss=0.01,
    ),
    "sequence_logprobs": lambda q, k: sequence_logprobs(q, k, torch.arange(len(q)), torch.tensor([0, 2, 2, 5])),
    "sequence_logprobs_ids": lambda q, k: sequence_logprobs(
        q, k, torch.arange(len(q)), segment_ids=torch.arange(len(q)) % 3 - 1, segments=2
    ),
    "pair_scores_bank": lambda q, k: (
        pair_scores(
            q, k, targets=torch.arange(len(q)).flip(0), pair_ids=torch.arange(len(q)), key_ids=torch.arange(len(k)) // 2
        ).pmi
    ),
    "pair_scores": lambda q, k: pair_scores(q, k[: len(q)], temperature=0.5).pmi,
    "row_logsumexp": lambda q, k: row_logsumexp(q, k),
    "segment_pool": lambda q, k: segment_pool(q, torch.tensor([0, 2, 2, 5])) @ k.T,
    "segment_pool_last": lambda q, k: segment_pool(q, torch.tensor([0, 2, 6]), mode="last", normalize=False) @ k.T,
}


@pytest.mark.parametrize("name", SWEEP_CALLS)
def test_gradcheck_passes_in_float64(name):
    assert gradcheck(SWEEP_CALLS[name], operands(6, 8, 3, dtype=torch.float64))


def test_gradcheck_passes_for_scale_and_bias():
    query, key = operands(6, 6, dtype=torch.float64)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    for direction in ("both", "query"):
        for workspace_bytes in (0, 1 << 20):
            options = {"direction": direction, "workspace_bytes": workspace_bytes}
            assert gradcheck(lambda q, k, s, o=options: info_nce(q, k, logit_scale=s, **o), (query, key, scale))
    hidden, weight = operands(dtype=torch.float64)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, -100, 10, 3, 3])
    assert gradcheck(lambda h, w, b: token_logprobs(h, w, targets, bias=b, softcap=3.0), (hidden, weight, bias))


EVERY_ROW, SOME_ROWS = [0, 3, 2, 5, 1, 4], [0, -1, 2, 5, 1, 1]
IDS = {"row_ids": [5, 7, 5, 1, 1, 0], "column_ids": [5, 7, 1]}
ROW_LOSS = {"has_row_loss": True, "label_smoothing": 0.1, "z_loss": 0.01, "logit_sums": True}


@pytest.mark.one_build
@pytest.mark.parametrize(
    ("targets", "other", "workspace_bytes", "wants"),
    [
        (None, False, 0, {}),
        (None, False, 0, {"has_row_loss": True}),
        (SOME_ROWS, False, 0, {"has_row_loss": True}),
        (SOME_ROWS, True, 0, {"has_row_loss": True}),
        (SOME_ROWS, False, 1 << 20, {"column_lse": True}),
        (EVERY_ROW, True, 1 << 20, {"column_lse": True}),
        (EVERY_ROW, False, 0, {"column_lse": True, "entropy": True, "ranks": True}),
        (EVERY_ROW, False, 0, {"entropy": True, "ranks": True, "has_row_loss": True, **IDS}),
        (EVERY_ROW, False, 0, {"column_lse": True, **IDS}),
        (EVERY_ROW, True, 1 << 20, {"column_lse": True, "logit_sums": True, "softplus": True, "clip": 3.0, **IDS}),
        (EVERY_ROW, False, 0, {"row_lse": False, "softplus": True, "keep_target": False}),
        (SOME_ROWS, True, 0, {"row_lse": False, "softplus": True, "sigmoid": True, "bias": -0.5, "keep_target": False}),
        (SOME_ROWS, False, 0, {"keep_target": False, "clip": 2.0, **IDS}),
        (SOME_ROWS, False, 0, ROW_LOSS),
        (EVERY_ROW, False, 0, {"has_row_loss": True, "loss_weights": [1.0, 0.0, 2.0, 1.0, 1.0, 3.0]}),
        (SOME_ROWS, False, 1 << 20, {**ROW_LOSS, "loss_weights": [1.0, 0.0, 2.0, 1.0, 1.0, 3.0]}),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_cast", [False, True])
def test_opcheck_passes_for_the_sweep(backend, targets, other, workspace_bytes, wants, is_cast):
    query, key = operands()
    wants = {**wants, "query_source": query, "key_source": key} if is_cast else wants
    if is_cast:
        query, key = query.detach().bfloat16(), key.detach().bfloat16()
    options = {name: torch.tensor(v) if isinstance(v, list) else v for name, v in wants.items()}
    if "bias" in options:
        options["bias"] = torch.tensor(options["bias"], requires_grad=True)
    if "loss_weights" in options:
        options["loss_weights"].requires_grad_()
    options = {**DEFAULTS, **options}
    args = SweepArgs(
        query=query,
        key=key,
        scale=torch.tensor(2.0, requires_grad=other),
        softcap=0.0,
        targets=None if targets is None else torch.tensor(targets),
        **options,
        grad_query=True,
        grad_key=True,
        gradient=plan.gradient_mode(
            6 * 11 * 4,
            only_row_loss=options["has_row_loss"] and not options["column_lse"] and not other,
            workspace_bytes=workspace_bytes,
        ),
        reuse_saved=False,  # opcheck reads the saved state after the backward
        backend=backend,
    )
    torch.library.opcheck(torch.ops.main_kernels.sweep.default, args)


@pytest.mark.one_build
def test_opcheck_passes_for_pooling(backend):
    hidden, offsets = torch.randn(7, 5, requires_grad=True), torch.tensor([0, 3, 7])
    torch.library.opcheck(
        torch.ops.main_kernels.segment_pool.default, (hidden, offsets, None, None, False, True, backend)
    )


@pytest.mark.one_backend
@pytest.mark.longest  # all of them together
@pytest.mark.parametrize("name", SWEEP_CALLS)
def test_compiles_with_fullgraph(backend, name):
    torch._dynamo.reset()
    query, key = operands(32, 40, 8)
    compiled = torch.compile(SWEEP_CALLS[name], fullgraph=True, backend="aot_eager")
    results = []
    for call in (SWEEP_CALLS[name], compiled):
        out = call(query, key).sum()
        results.append((out, *torch.autograd.grad(out, (query, key), allow_unused=True)))
    for eager, graph in zip(*results, strict=True):
        assert error(eager, graph) < 1e-5


@pytest.mark.parametrize("name", SWEEP_CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_and_thread_counts_give_the_same_bits(backend, name, dtype):
    query, key = operands(300, 700, 64, dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            out = SWEEP_CALLS[name](query, key).sum()
            results.append((threads, out.detach(), *torch.autograd.grad(out, (query, key), allow_unused=True)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(results[1][1:], results[2][1:], strict=True))
    if backend == "cpu":  # torch.mm itself may sum differently with another thread count
        for other in (results[0], results[3]):
            for a, b in zip(results[1][1:], other[1:], strict=True):
                assert error(a, b) <= 1e-5 * max(1.0, float(a.detach().double().abs().max())) * (
                    1 if dtype == torch.float32 else 1000
                )


@pytest.mark.one_build
@pytest.mark.parametrize("name", SWEEP_CALLS)
def test_autocast_casts_the_operands_and_nothing_else(backend, name):
    """Not their gradients: these are what float32 leaves with the values of the cast operands have."""
    query, key = operands(16, 24, 8)
    narrow = [t.detach().bfloat16().requires_grad_() for t in (query, key)]
    leaves = [t.detach().float().requires_grad_() for t in narrow]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = SWEEP_CALLS[name](query, key)
    want = SWEEP_CALLS[name](*narrow)
    if "pool" in name:
        return  # pooling is elementwise: autocast leaves it alone
    assert out.dtype == torch.float32
    assert error(out, want) <= 1e-6 * max(1.0, float(want.detach().abs().max()))  # a bfloat16 rounding is 4e-3
    mine = torch.autograd.grad(out.sum(), (query, key))
    theirs = torch.autograd.grad(SWEEP_CALLS[name](*leaves).sum(), leaves)
    rounded = torch.autograd.grad(want.sum(), narrow)
    for a, b, c in zip(mine, theirs, rounded, strict=True):
        assert error(a, b) <= 1e-6 * float(b.abs().max())
        # the leaves of a row's own negatives have two gradients to add, which bfloat16 rounds before and after
        assert error(a.bfloat16(), c) <= (1e-2 * float(c.abs().max()) if "own_negatives" in name else 0)


def multiply_adds(run) -> int:
    """Multiply-adds of all matrix products that ``run`` makes, inside ops too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        run()
    work = 0
    for event in profile.events():
        is_part = event.cpu_parent is not None and event.cpu_parent.name == event.name
        if event.name in ("aten::mm", "aten::addmm_") and not is_part:
            left, right = event.input_shapes[:2] if event.name == "aten::mm" else event.input_shapes[1:3]
            work += left[0] * left[1] * right[1]
    return work


def test_a_plain_call_is_profiled_under_the_name_of_its_op_and_avoids_torch_library(monkeypatch):
    for op in (forward.sweep_op, backward.sweep_gradient_op):
        monkeypatch.setattr(op, "_op", SimpleNamespace(name=op._op.name))  # which cannot be called
    query, key = operands()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        token_logprobs(query, key, torch.arange(6)).sum().backward()
    names = {event.name for event in profile.events()}
    assert {"main_kernels::sweep", "main_kernels::sweep_gradient_"} <= names


@pytest.mark.one_build
@pytest.mark.parametrize(
    ("call", "grad", "products"),
    [
        ("token", (False, False), 1),
        ("token", (True, True), 3),
        ("token", (True, False), 2),
        ("token", (False, True), 2),
        ("token_weighted", (True, True), 5),
        ("token_weighted", (True, False), 2),
        ("kept", (True, True), 3),
        ("kept", (False, True), 2),
        ("recomputed", (True, True), 4),
        ("recomputed", (True, False), 3),
        ("one_way", (True, True), 3),
        ("scores", (False, False), 1),
        ("cross_entropy", (True, True), 3),
        ("cross_entropy", (True, False), 2),
        ("one_way_weighted", (True, True), 3),
        ("weights_trained", (True, True), 3),
        ("sequences", (True, True), 3),
        ("sequences", (True, False), 2),
        ("sequences_recomputed", (True, True), 4),
        ("sequences_recomputed", (False, True), 3),
        ("sequences", (False, False), 1),
        ("sigmoid_kept", (True, True), 3),
        ("sigmoid_recomputed", (True, True), 4),
        ("ids", (True, True), 4),
        ("ids", (False, True), 3),
    ],
)
def test_each_call_computes_the_documented_products(backend, call, grad, products):
    """The floors of the design, counted: no product for a gradient nobody wants."""
    query, key = operands(64, 64, 32, grad=grad)
    weights, one, halves, unequal = torch.rand(64), torch.tensor(1.0), torch.tensor([0, 30, 64]), torch.tensor([1.0, 2])
    calls = {
        "token": lambda: token_logprobs(query, key, torch.arange(64)).mean(),
        "token_weighted": lambda: (token_logprobs(query, key, torch.arange(64)) * weights).sum(),
        "kept": lambda: info_nce(query, key),
        "recomputed": lambda: info_nce(query, key, workspace_bytes=0),
        "one_way": lambda: info_nce(query, key, workspace_bytes=0, direction="query"),
        "cross_entropy": lambda: linear_cross_entropy(
            query, key, torch.arange(64), token_weights=weights + 0.1, label_smoothing=0.1, z_loss=0.01
        ),
        "weights_trained": lambda: linear_cross_entropy(
            query, key, torch.arange(64), token_weights=weights.clone().requires_grad_(), reduction="sum"
        ),
        "one_way_weighted": lambda: info_nce(query, key, workspace_bytes=0, direction="query", pair_weights=weights),
        "sequences": lambda: (sequence_logprobs(query, key, torch.arange(64), halves) * unequal).sum(),
        "sequences_recomputed": lambda: (
            sequence_logprobs(query, key, torch.arange(64), halves, workspace_bytes=0) * unequal
        ).sum(),
        "sigmoid_kept": lambda: sigmoid_loss(query, key, logit_scale=one, logit_bias=one),
        "sigmoid_recomputed": lambda: sigmoid_loss(query, key, logit_scale=one, logit_bias=one, workspace_bytes=0),
        "ids": lambda: info_nce(query, key, workspace_bytes=0, pair_ids=torch.arange(64) // 2),
        "scores": lambda: pair_scores(query, key).pmi.sum(),
    }

    def run() -> None:
        loss = calls[call]()
        if loss.requires_grad:
            loss.backward()

    assert multiply_adds(run) == products * 64 * 64 * 32


@pytest.mark.one_build
def test_masked_rows_cost_no_product(backend):
    hidden, weight = operands(64, 128, 32)
    targets = torch.full((64,), -100)
    targets[:16] = 3
    work = multiply_adds(lambda: token_logprobs(hidden, weight, targets).sum().backward())
    assert work == 3 * 16 * 128 * 32


@pytest.mark.parametrize("name", ["token_logprobs", "info_nce", "info_nce_recomputed"])
def test_a_second_backward_gives_the_same_gradients(backend, name):
    query, key = operands(32, 40, 8)
    loss = SWEEP_CALLS[name](query, key).sum()
    first = torch.autograd.grad(loss, (query, key), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, (query, key))
    for a, b, untouched in zip(first, second, kept, strict=True):
        assert error(a, b) < 1e-5
        assert torch.equal(a, untouched)


def test_graphs_alive_at_the_same_time_do_not_share_workspace(backend):
    """Workspace is lent out again, but never while a graph still needs what it holds."""
    operand_pairs = [operands(1200, 1200, 16) for _ in range(3)]
    alone = []
    for query, key in operand_pairs:
        alone.append(torch.autograd.grad(info_nce(query, key), (query, key)))
    losses = [info_nce(query, key) for query, key in operand_pairs]
    info_nce(*operands(1200, 1200, 16))  # a graph that is dropped
    for place in (1, 0, 2):
        together = torch.autograd.grad(losses[place], operand_pairs[place])
        assert all(torch.equal(a, b) for a, b in zip(alone[place], together, strict=True))


def test_returned_gradients_share_no_memory(backend):
    """The gradients handed out belong to the caller alone."""
    query, key = operands(8, 8, 4)
    loss = info_nce(query, key)
    (gradient,) = torch.autograd.grad(loss, query, retain_graph=True)
    gradient.fill_(7.0)
    (again,) = torch.autograd.grad(loss, query)
    assert not (again == 7).any()


def test_backends_agree():
    if len(BACKENDS) < 2:
        pytest.skip("one backend only")
    query, key = operands(200, 300, 16)
    for name, call in SWEEP_CALLS.items():
        results = []
        for backend in BACKENDS:
            with backends.use_backend(backend):
                results.append(call(query, key))
        assert error(*results) < 2e-6 * max(10.0, float(results[0].detach().abs().max())), name


def test_the_chunk_size_does_not_change_the_result(backend, monkeypatch):
    query, key = operands(600, 50, 16)
    targets = torch.randint(0, 50, (600,))
    whole = token_logprobs(query, key, targets)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    chunked = token_logprobs(query, key, targets)
    assert error(whole, chunked) < 1e-5
    monkeypatch.setattr(tiling, "_TILE_ROWS", 256)
    monkeypatch.setattr(tiling, "_TILE_COLUMNS", 16)
    with torch.no_grad():
        assert error(whole, token_logprobs(query, key, targets)) < 1e-5
        assert error(row_logsumexp(query, key), (query @ key.T).logsumexp(1)) < 1e-5
