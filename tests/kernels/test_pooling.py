"""segment_pool against the float64 reference: modes, row_weights, query, extremes, and what every op promises."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from main_kernels import backends, reference, segment_pool

from .contract import BACKENDS, DEVICE, DTYPES, assert_contract, error, exact, seeded


def dense(hidden, offsets, mode, normalize, query=None, row_weights=None):
    """What people write: loops over segments, in the dtype of the states, a softmax in float32."""
    rows = []
    for begin, end in itertools.pairwise(offsets.tolist()):
        part, w = hidden[begin:end], None if row_weights is None else row_weights[begin:end]
        if mode == "attention" and begin < end:
            scores = (part @ query.to(part.dtype)).to(torch.promote_types(part.dtype, torch.float32))
            w = (scores - scores.max()).exp() * (1 if w is None else w)
        if begin == end or (w is not None and not bool(w.any())):
            rows.append(hidden.new_zeros(hidden.shape[1]))
            continue
        if mode == "last":
            row = part[-1]
        else:
            row = part.mean(0) if w is None else (w / w.sum()).to(part.dtype) @ part
        rows.append(torch.nn.functional.normalize(row, dim=0) if normalize else row)
    return torch.stack(rows)


def largest_unit(offsets, hidden, row_weights, query=None):
    """The largest coefficient of a row per unit of its weight: what a gradient of the row_weights is a product with."""
    units = [0.0]
    for begin, end in itertools.pairwise(offsets.tolist()):
        w = row_weights[begin:end].detach()
        if bool(w.any()):
            z = torch.zeros_like(w) if query is None else (hidden[begin:end] @ query).detach()
            e = (z - z[w != 0].max()).exp()
            units.append(float(e.max() / (w * e).sum().abs()))
    return max(units)


WEIGHTS = {
    "none": lambda n, generator: None,
    "positive": lambda n, generator: torch.rand(n, generator=generator) + 0.1,
    "mask": lambda n, generator: (torch.rand(n, generator=generator) < 0.6).float(),
    "zero": lambda n, generator: torch.zeros(n),
    "huge": lambda n, generator: (torch.rand(n, generator=generator) + 0.1) * 1e30,
    "tiny": lambda n, generator: (torch.rand(n, generator=generator) + 0.1) * 1e-30,
}


@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 5, 16, 33]), min_size=1, max_size=6),
    before=st.sampled_from([0, 3]),
    after=st.sampled_from([0, 4]),
    width=st.sampled_from([1, 7, 64]),
    dtype=st.sampled_from(DTYPES),
    mode=st.sampled_from(["mean", "last", "attention"]),
    kind=st.sampled_from(list(WEIGHTS)),
    spread=st.sampled_from([0.3, 3.0]),
    normalize=st.booleans(),
    offset_dtype=st.sampled_from([torch.int32, torch.int64]),
    strided=st.booleans(),
)
def test_matches_the_reference(
    backend, lengths, before, after, width, dtype, mode, kind, spread, normalize, offset_dtype, strided
):
    if backend != "plain" and dtype == torch.float64:
        dtype = torch.float32
    generator = seeded(sum(lengths))
    rows = max(before + sum(lengths) + after, 1)
    hidden = torch.randn(rows, 2 * width, generator=generator).to(dtype)
    hidden = (hidden[:, ::2] if strided else hidden[:, :width].clone()).requires_grad_()
    offsets = torch.tensor([before, *lengths]).cumsum(0).to(offset_dtype)
    leaves = {"hidden": hidden}
    if mode == "attention":
        leaves["query"] = (torch.randn(width, generator=generator) * spread).to(dtype).requires_grad_()
    if mode != "last" and kind != "none":
        leaves["row_weights"] = WEIGHTS[kind](rows, generator).requires_grad_()
    options = {"mode": mode, "normalize": normalize}
    got = segment_pool(cu_seqlens=offsets, **options, **leaves)
    true_leaves = dict(zip(leaves, exact(*leaves.values()), strict=True))
    want = reference.segment_pool(cu_seqlens=offsets, **options, **true_leaves)
    rough = dense(offsets=offsets, **options, **leaves)
    assert got.dtype == dtype
    logit = 1.0
    if mode == "attention":
        logit = max(1.0, float((true_leaves["hidden"] @ true_leaves["query"]).detach().abs().max()))
    states = true_leaves["hidden"].detach()
    value = 1.0 if normalize else float(states.abs().max())
    assert_contract("pooled", got, rough, want, logit * value)
    if not want.requires_grad:
        return
    up = torch.randn(want.shape, generator=generator).to(dtype)
    mine, theirs, true = (
        torch.autograd.grad(o, list(v.values()), up.to(o.dtype), allow_unused=True)
        for o, v in ((got, leaves), (rough, leaves), (want, true_leaves))
    )
    norms = reference.segment_pool(cu_seqlens=offsets, mode=mode, normalize=False, **true_leaves).detach().norm(dim=1)
    inner = float(up.double().norm(dim=1).max()) / (float(norms[norms > 0].min()) if normalize else 1.0)
    longest = float(states.norm(dim=1).max())
    query = float(true_leaves["query"].detach().abs().max()) if mode == "attention" else 0.0
    largest = {
        "hidden": inner * (1 + 2 * longest * query * logit),
        "query": inner * 2 * longest * float(states.abs().max()) * logit,
    }
    if "row_weights" in leaves:
        largest["row_weights"] = inner * 2 * longest * logit * largest_unit(offsets, **true_leaves)
    for name, g, r, t in zip(leaves, mine, theirs, true, strict=True):
        assert g.dtype == leaves[name].dtype
        assert_contract(f"d_{name}", g, r if r is not None else torch.zeros_like(g), t, largest[name])


def operands(rows=11, width=5, dtype=torch.float32):
    return (
        torch.randn(rows, width, dtype=dtype, requires_grad=True),
        torch.randn(width, dtype=dtype, requires_grad=True),
        (torch.rand(rows, dtype=dtype) + 0.1).requires_grad_(),
    )


OFFSETS = torch.tensor([1, 4, 4, 5, 10], device=DEVICE)
POOLING_CALLS = {
    "mean": lambda h, q, w: segment_pool(h, OFFSETS),
    "mean_weighted": lambda h, q, w: segment_pool(h, OFFSETS, row_weights=w),
    "mean_weighted_raw": lambda h, q, w: segment_pool(h, OFFSETS, row_weights=w, normalize=False),
    "last": lambda h, q, w: segment_pool(h, OFFSETS, mode="last"),
    "attention": lambda h, q, w: segment_pool(h, OFFSETS, mode="attention", query=q),
    "attention_raw": lambda h, q, w: segment_pool(h, OFFSETS, mode="attention", query=q, normalize=False),
    "attention_weighted": lambda h, q, w: segment_pool(h, OFFSETS, mode="attention", query=q, row_weights=w),
}


@pytest.mark.parametrize("name", POOLING_CALLS)
def test_gradcheck_passes_in_float64(name):
    leaves = operands(width=2, dtype=torch.float64)
    assert gradcheck(POOLING_CALLS[name], leaves)
    signs = torch.tensor([1.0, -1.0, 0.0] * 4, dtype=torch.float64)[:11]  # negative and zero weights have gradients too
    leaves[2].data.mul_(signs).add_(signs.eq(1))
    assert gradcheck(POOLING_CALLS[name], leaves)


@pytest.mark.one_build
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_opcheck_passes(backend, attention, weighted):
    hidden, query, weights = operands()
    extra = (weights if weighted else None, query if attention else None)
    torch.library.opcheck(torch.ops.main_kernels.segment_pool.default, (hidden, OFFSETS, *extra, False, True, backend))


@pytest.mark.one_build
@pytest.mark.parametrize("name", POOLING_CALLS)
def test_compiles_with_fullgraph(backend, name):
    torch._dynamo.reset()
    leaves = operands()
    up = torch.randn(4, 5)
    results = []
    for call in (POOLING_CALLS[name], torch.compile(POOLING_CALLS[name], fullgraph=True, backend="aot_eager")):
        out = call(*leaves)
        results.append((out, *torch.autograd.grad(out, leaves, up, allow_unused=True)))
    for eager, graph in zip(*results, strict=True):
        assert (eager is None) == (graph is None)
        assert eager is None or torch.equal(eager, graph)


@pytest.mark.parametrize("name", POOLING_CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_and_thread_counts_give_the_same_bits(backend, name, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in operands(11, 700)]
    up = torch.randn(4, 700).to(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (2, 2, 1, 3):
            torch.set_num_threads(threads)
            out = POOLING_CALLS[name](*leaves)
            results.append((out, *torch.autograd.grad(out, leaves, up, allow_unused=True)))
    finally:
        torch.set_num_threads(before)
    promised = results if backend != "plain" else results[:2]  # torch itself may sum differently on other thread counts
    for other in promised[1:]:
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.one_build
@pytest.mark.parametrize("name", POOLING_CALLS)
def test_autocast_changes_nothing(backend, name):
    leaves = operands()
    up = torch.randn(4, 5)
    results = []
    for enabled in (False, True):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=enabled):
            out = POOLING_CALLS[name](*leaves)
            results.append((out, *torch.autograd.grad(out, leaves, up, allow_unused=True)))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.one_build
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
def test_frozen_arguments_cost_nothing(backend, wanted, monkeypatch):
    """No gradient that nobody wants is made, and without slopes to compute the states are not kept alive."""
    leaves = operands()
    for leaf, grad in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(grad)
    made, kept = [], []
    served = type(backends.get_backend(backend))
    original = served.pool_backward

    def spy(*arguments):
        made.append(original(*arguments))
        return made[-1]

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    monkeypatch.setattr(served, "pool_backward", spy)
    hidden, query, weights = leaves
    for attention in (False, True):
        made.clear(), kept.clear()
        used = [wanted[0], wanted[2], attention and wanted[1]]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            mode, given = ("attention", query) if attention else ("mean", None)
            out = segment_pool(hidden, OFFSETS, mode=mode, query=given, row_weights=weights)
        assert out.requires_grad == any(used)
        if any(used):
            out.sum().backward()
            assert [g is not None for g in made[0]] == used
            assert (hidden.shape in kept) == (attention or wanted[2])


def test_backends_agree():
    if len(BACKENDS) < 2:
        pytest.skip("one backend only")
    leaves = operands()
    for name, call in POOLING_CALLS.items():
        results = []
        for backend in BACKENDS:
            with backends.use_backend(backend):
                out = call(*leaves)
                results.append((out, *torch.autograd.grad(out.square().sum() + out[0, 0], leaves, allow_unused=True)))
        for a, b in zip(*results, strict=True):
            assert a is b is None or error(a, b) < 1e-5, name


def test_zero_rows_stay_zero_without_a_gradient(backend):
    hidden = torch.zeros(4, 3, requires_grad=True)
    pooled = segment_pool(hidden, torch.tensor([0, 2, 4]))
    assert not pooled.any()
    pooled.sum().backward()
    assert not hidden.grad.any()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("weights", [[0.0, 0.0, 1.0, 2.0], [1.0, -1.0, 1.0, 1.0], [1e30, -1e30, 1e30, 1e30]])
def test_weights_that_sum_to_zero_give_zero_without_a_gradient(backend, weights, attention, normalize):
    hidden = torch.randn(2, 3).repeat_interleave(2, 0).requires_grad_()  # equal rows have equal exponentials
    weights = torch.tensor(weights, requires_grad=True)
    query = torch.randn(3, requires_grad=True) if attention else None
    mode = "attention" if attention else "mean"
    pooled = segment_pool(
        hidden, torch.tensor([0, 2, 4]), mode=mode, query=query, row_weights=weights, normalize=normalize
    )
    assert not pooled[0].any()
    assert pooled[1].any()
    pooled[0].sum().backward()
    for leaf in (hidden, weights, query):
        assert leaf is None or not leaf.grad.any()


@pytest.mark.parametrize("weights", [[3.0, -1.0, -2.0], [5.0, -2.0, -3.0], [3 * 2.0**-99, -(2.0**-99), -(2.0**-98)]])
def test_different_weights_that_sum_to_zero_give_zero(backend, weights):
    """A third has no exact binary form: weights relative to the largest would no longer sum to 0."""
    hidden = torch.randn(40, 3).requires_grad_()
    row_weights = torch.tensor([1.0] * 37 + weights, requires_grad=True)
    pooled = segment_pool(hidden, torch.tensor([0, 37, 40]), row_weights=row_weights)
    assert pooled[0].any()
    assert not pooled[1].any()
    assert not any(g.any() for g in torch.autograd.grad(pooled[1].sum(), (hidden, row_weights)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_scores_of_ten_thousand_do_not_overflow(backend, dtype):
    """+-1e4: one row takes all, no exponential overflows; the softmax is exact where scores are near each other."""
    hidden = torch.tensor([[100.0, 0, 1], [-100, 0, 2], [100, 0, 3], [99.5, 1, 4], [-100, 1, 5]], dtype=dtype)
    hidden.requires_grad_()
    query = torch.tensor([100.0, 0, 0], requires_grad=True)
    offsets = torch.tensor([0, 2, 5])
    for sign in (1, -1):
        options = {"mode": "attention", "query": sign * query, "normalize": False}
        leaves = exact(hidden, query)
        got = segment_pool(hidden, offsets, **options)
        want = reference.segment_pool(leaves[0], offsets, mode="attention", query=sign * leaves[1], normalize=False)
        assert error(got, want) <= 1e-6
        mine = torch.autograd.grad(got[:, 2].sum(), (hidden, query))
        true = torch.autograd.grad(want[:, 2].sum(), leaves)
        for g, t in zip(mine, true, strict=True):
            assert error(g, t) <= 1e-5


def test_a_masked_row_is_ignored_whatever_its_score(backend):
    """The maximum of the softmax is over the rows that count: the masked one is e^10000 above them."""
    hidden = torch.tensor([[0.0, 1], [1e4, 2], [0, 3]], requires_grad=True)
    query, weights = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0, 3.0])
    pooled = segment_pool(
        hidden, torch.tensor([0, 3]), mode="attention", query=query, row_weights=weights, normalize=False
    )
    assert pooled.tolist() == [[0.0, 2.5]]
    pooled.sum().backward()
    assert not hidden.grad[1].any()
    assert hidden.grad[0].any()


def test_scaling_the_weights_changes_nothing(backend):
    hidden, query, weights = operands(dtype=torch.float32)
    for options in ({}, {"mode": "attention", "query": query}):
        want = segment_pool(hidden, OFFSETS, row_weights=weights, **options)
        for factor in (2.0**120, 2.0**-120, -1.0):
            got = segment_pool(hidden, OFFSETS, row_weights=weights * factor, **options)
            assert error(got, want) < 1e-6


def test_one_row_has_attention_one(backend):
    hidden = torch.randn(3, 4)
    for query in (torch.zeros(4), torch.randn(4) * 1e3):
        pooled = segment_pool(hidden, torch.arange(4), mode="attention", query=query, normalize=False)
        assert torch.equal(pooled, hidden)


def test_special_cases_are_the_plain_mean(backend):
    hidden, query, _ = operands()
    want = segment_pool(hidden, OFFSETS, normalize=False)
    weighted = segment_pool(hidden, OFFSETS, row_weights=torch.full((11,), 0.3), normalize=False)
    flat = segment_pool(hidden, OFFSETS, mode="attention", query=torch.zeros(5), normalize=False)
    assert error(weighted, want) < 1e-6
    assert error(flat, want) < 1e-6
    tempered = segment_pool(hidden, OFFSETS, mode="attention", query=1e4 * query.detach(), normalize=False)
    highest = [begin + int((hidden[begin:end] @ query).argmax()) for begin, end in ((1, 4), (4, 5), (5, 10))]
    assert error(tempered[[0, 2, 3]], hidden[highest]) < 1e-6


@pytest.mark.parametrize("mode", ["mean", "attention"])
def test_long_segments_lose_no_digits(backend, mode):
    """Equal rows are the worst case of a running float32 sum: 16384 of them lost four digits."""
    hidden = torch.full((16384, 4), 0.1)
    query = torch.ones(4) if mode == "attention" else None
    for weights in (None, torch.full((16384,), 0.7)):
        pooled = segment_pool(
            hidden, torch.tensor([0, 16384]), mode=mode, query=query, row_weights=weights, normalize=False
        )
        assert error(pooled, hidden[:1]) <= 8 * 2**-27


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["hidden", "weights", "query"])
@pytest.mark.parametrize("mode", ["mean", "attention"])
def test_non_finite_operands_give_nan(backend, mode, where, bad):
    hidden, query, weights = (t.detach() for t in operands(4, 3))
    offsets = torch.tensor([0, 2, 4])
    {"hidden": hidden[1], "weights": weights[1:2], "query": query}[where][0] = bad
    options = {"query": query} if mode == "attention" else {}
    if where == "query" and not options:
        return
    pooled = segment_pool(hidden, offsets, mode=mode, row_weights=weights, **options)
    assert pooled[0].isnan().all()
    assert pooled[1].isnan().all() == (where == "query")
    if mode == "attention":  # a row whose score is -inf must not just drop out of the softmax
        raw = segment_pool(hidden, offsets, mode=mode, row_weights=weights, normalize=False, **options)
        assert raw[0].isnan().all()


def test_a_large_embedding_is_normalised(backend):
    """Squares of 1e30 overflow float32, their norm does not."""
    pooled = segment_pool(torch.full((2, 4), 1e30), torch.tensor([0, 2]))
    assert error(pooled, torch.full((1, 4), 0.5)) < 1e-6
    assert segment_pool(torch.full((2, 4), 3e38), torch.tensor([0, 2])).isnan().all()  # not zeros: this one does


def test_a_non_finite_row_of_weight_zero_gives_nan(backend):
    hidden = torch.randn(4, 3)
    hidden[1, 1] = float("nan")
    pooled = segment_pool(hidden, torch.tensor([0, 2, 4]), row_weights=torch.tensor([1.0, 0, 1, 1]))
    assert pooled[0].isnan().any()
    assert not pooled[1].isnan().any()


@pytest.mark.skipif(DEVICE != "cpu", reason="on a device it is an assertion there, after which nothing runs")
@pytest.mark.parametrize("offsets", [[0, 3, 2], [-1, 2], [0, 9]])
def test_bad_offsets_are_refused(backend, offsets):
    with pytest.raises(ValueError, match="cu_seqlens"):
        segment_pool(torch.randn(4, 3), torch.tensor(offsets))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "max"}, "mode: expected .*, got 'max'"),
        ({"mode": "attention"}, "query: expected a tensor with mode 'attention', got none"),
        ({"query": torch.ones(3)}, "query: expected none with mode 'mean', got a tensor"),
        ({"mode": "last", "query": torch.ones(3)}, "query: expected none with mode 'last', got a tensor"),
        ({"mode": "attention", "query": torch.ones(4)}, r"query: expected \(3,\), got shape \(4,\)"),
        ({"mode": "attention", "query": [1.0, 2.0, 3.0]}, "query: expected .*, got list"),
        ({"mode": "attention", "query": torch.ones(3).long()}, "query: expected .*, got dtype torch.int64"),
        ({"mode": "last", "row_weights": torch.ones(4)}, "row_weights: expected none with mode 'last', got a tensor"),
        ({"row_weights": torch.ones(3)}, r"row_weights: expected \(4,\), got shape \(3,\)"),
        ({"row_weights": torch.ones(4).long()}, "row_weights: expected .*, got dtype torch.int64"),
        ({"row_weights": torch.ones(4, device="meta")}, "row_weights: expected .*, got device meta"),
    ],
)
def test_an_invalid_argument_is_refused(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        segment_pool(torch.randn(4, 3), torch.tensor([0, 4]), **options)


@pytest.mark.parametrize("mode", ["mean", "last", "attention"])
def test_no_rows_give_zero_embeddings(backend, mode):
    hidden = torch.zeros(0, 4, requires_grad=True)
    query = torch.ones(4, requires_grad=True) if mode == "attention" else None
    pooled = segment_pool(hidden, torch.tensor([0, 0, 0]), mode=mode, query=query)
    assert torch.equal(pooled, torch.zeros(2, 4))
    pooled.sum().backward()
    assert hidden.grad.shape == (0, 4)
    assert query is None or not query.grad.any()
