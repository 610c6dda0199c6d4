"""info_nce, sigmoid_loss, pair_scores and row_logsumexp against the float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from main_kernels import backends, info_nce, pair_scores, reference, row_logsumexp, sigmoid_loss
from main_kernels.sweep import plan, problem, sweep

from .contract import Matrices, assert_contract, error, exact, largest_logit, matrices, seeded


def served(backend: str, drawn: Matrices) -> Matrices:
    """The drawn problem in a dtype that the backend serves."""
    if backend != "plain" and drawn.dtype == torch.float64:
        return Matrices(**{**drawn.__dict__, "dtype": torch.float32})
    return drawn


def some_ids(drawn: Matrices, count: int) -> torch.Tensor:
    """Ids of which most occur several times: small, or spread over the whole of int64 with equal lower halves."""
    few = torch.randint(0, max(count // 2, 1), (count,), generator=seeded(drawn.seed))
    return few - 1 if drawn.seed % 2 else few * 2**40 - 2**61


def check_gradients(drawn: Matrices, names, got, rough, want, leaves, bounds) -> None:
    """Compare gradients of got (ours), rough (torch's dense code) and want (the reference on exact leaves).

    bounds: the largest term summed in each gradient for an upstream gradient of one."""
    up = torch.randn(got.shape, generator=seeded(drawn.seed))
    size = float(up.abs().max())
    mine, theirs = (torch.autograd.grad(o, leaves[0], up.to(o.dtype)) for o in (got, rough))
    true = torch.autograd.grad(want, leaves[1], up.double())
    for name, g, r, t, bound in zip(names, mine, theirs, true, bounds, strict=True):
        assert_contract(f"d_{name}", g, r, t, size * bound)


def check(drawn: Matrices, *, temperature=0.07, learnable=False, weighted=False, extra=None, ids=False, **options):
    query, key = drawn.draw()
    generator = seeded(drawn.seed + 1)
    leaves = {"query": query, "key": key}
    scale = 1 / temperature
    if learnable:
        leaves["logit_scale"] = torch.tensor(-math.log(temperature), requires_grad=True)
        scale = min(max(scale, 1.0), 100.0)
    if weighted:
        leaves["pair_weights"] = torch.rand(drawn.rows, generator=generator).requires_grad_()
    if extra is not None:
        shape = {"shared": (5, drawn.width), "own": (drawn.rows, 3, drawn.width)}[extra]
        leaves["negatives"] = (torch.randn(shape, generator=generator) * drawn.spread).to(drawn.dtype).requires_grad_()
    if ids:
        options["pair_ids"] = some_ids(drawn, drawn.rows)
    workspace_bytes = options.pop("workspace_bytes", 0)
    options["temperature"] = temperature
    got = info_nce(**leaves, **options, workspace_bytes=workspace_bytes)
    true_leaves = dict(zip(leaves, exact(*leaves.values()), strict=True))
    want = reference.info_nce(**true_leaves, **options)
    rough = reference.info_nce(**leaves, **options, product=reference.rough)
    scores = reference.exact(query, key) * scale
    largest = largest_logit(scores)
    if extra is not None:
        rows = leaves["negatives"].reshape(-1, drawn.width)
        largest = max(largest, largest_logit(reference.exact(query, rows) * scale), math.log(drawn.rows + 5))
    rows_summed = drawn.rows if options.get("reduction") == "sum" else 1
    assert_contract("loss", got, rough, want, largest * rows_summed)

    mean_factor = 1 / drawn.rows if options.get("reduction", "mean") == "mean" and not weighted else 1
    top = {name: float(leaf.detach().abs().max()) for name, leaf in leaves.items()}
    across = max(top["key"], top.get("negatives", 0.0))
    bounds = {
        "query": mean_factor * scale * across,
        "key": mean_factor * scale * top["query"],
        "negatives": mean_factor * scale * top["query"],
        "logit_scale": largest * drawn.rows,
        "pair_weights": largest * 2,
    }
    if weighted and options.get("reduction", "mean") == "mean":
        bounds["pair_weights"] /= float(leaves["pair_weights"].detach().sum())
    pairs = [list(leaves.values()), list(true_leaves.values())]
    check_gradients(drawn, leaves, got, rough, want, pairs, [bounds[name] for name in leaves])


@given(
    drawn=matrices(square=True),
    temperature=st.sampled_from([0.005, 0.07, 1.0, 10.0]),
    learnable=st.booleans(),
    direction=st.sampled_from(["both", "query", "key"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    workspace_bytes=st.sampled_from([0, 1 << 28]),
)
def test_info_nce_matches_the_reference(backend, drawn, **options):
    check(served(backend, drawn), **options)


@given(
    drawn=matrices(square=True),
    temperature=st.sampled_from([0.07, 1.0]),
    learnable=st.booleans(),
    direction=st.sampled_from(["both", "query"]),
    weighted=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    extra=st.sampled_from([None, "shared", "own"]),
    ids=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    workspace_bytes=st.sampled_from([0, 1 << 28]),
)
def test_info_nce_with_options_matches_the_reference(backend, drawn, **options):
    check(served(backend, drawn), **options)


def test_gradient_of_large_scores_matches_the_reference(backend):
    check(Matrices(129, 129, 13, torch.float32, 1.0, False, 0), temperature=1.0, direction="both")


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28])
@pytest.mark.parametrize(
    "options",
    [
        {"direction": "both"},
        {"direction": "query"},
        {"direction": "query", "weighted": True},
        {"ids": True},
        {"ids": True, "label_smoothing": 0.1, "extra": "shared"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_chunks_match_the_reference(backend, dtype, options, workspace_bytes, monkeypatch, fast_bfloat16):
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    drawn = Matrices(540, 540, 64, dtype, 0.3, False, 5)
    assert plan.make_plan(540, 540, 64, dtype).rows == 512
    assert (plan.make_plan(540, 540, 64, dtype).compute == dtype) == (fast_bfloat16 or dtype == torch.float32)
    check(drawn, temperature=0.5, workspace_bytes=workspace_bytes, **options)


@given(
    drawn=matrices(square=True),
    scale=st.sampled_from([0.0, math.log(10), 9.0]),
    bias=st.sampled_from([-10.0, 0.0, 3.0]),
    ids=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    workspace_bytes=st.sampled_from([0, 1 << 28]),
)
def test_sigmoid_loss_matches_the_reference(backend, drawn, scale, bias, ids, reduction, workspace_bytes):
    drawn = served(backend, drawn)
    query, key = drawn.draw()
    leaves = {"query": query, "key": key, "logit_scale": torch.tensor(scale), "logit_bias": torch.tensor(bias)}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    options = {"reduction": reduction, "pair_ids": some_ids(drawn, drawn.rows) if ids else None}
    got = sigmoid_loss(**leaves, **options, workspace_bytes=workspace_bytes)
    true_leaves = dict(zip(leaves, exact(*leaves.values()), strict=True))
    want = reference.sigmoid_loss(**true_leaves, **options)
    rough = reference.sigmoid_loss(**leaves, **options, product=reference.rough)
    factor = math.exp(min(scale, math.log(100)))
    scores = reference.exact(query, key) * factor + bias
    largest = max(largest_logit(scores), 1.0) * (drawn.rows if reduction == "sum" else 1)
    assert_contract("loss", got, rough, want, largest * drawn.rows)
    mean_factor = 1 / drawn.rows if reduction == "mean" else 1
    top = [float(leaf.detach().abs().max()) for leaf in (query, key)]
    everything = drawn.rows**2 * mean_factor
    bounds = [
        mean_factor * factor * top[1],
        mean_factor * factor * top[0],
        everything * largest_logit(scores),
        everything,
    ]
    pairs = [list(leaves.values()), list(true_leaves.values())]
    check_gradients(drawn, leaves, got, rough, want, pairs, bounds)


def test_sigmoid_loss_of_a_confident_model_is_not_rounded_away(backend):
    """At SigLIP's start every negative costs e^-10: added to 0.5 one by one they would still count."""
    query = torch.zeros(100, 4)
    loss = sigmoid_loss(query, query, logit_scale=torch.tensor(0.0), logit_bias=torch.tensor(-20.0), reduction="none")
    want = 20 + 100 * math.log1p(math.exp(-20))
    assert loss.double().sub(want).abs().max() < 4e-6
    empty = sigmoid_loss(query, query, logit_scale=torch.tensor(0.0), logit_bias=torch.tensor(20.0), reduction="none")
    assert empty.double().sub(99 * 20 + 100 * math.log1p(math.exp(-20))).abs().max() < 2e-4


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28])
@pytest.mark.parametrize(("scale", "bias"), [(math.log(10), -10.0), (math.log(90), -16.0), (math.log(10), 40.0)])
def test_the_gradient_of_the_scale_is_exact_beside_a_large_bias(backend, scale, bias, workspace_bytes):
    """SigLIP's start, its end, and a bias with which every negative counts. The bias' part of the gradient is hundreds
    of times the whole."""
    query, key = (torch.nn.functional.normalize(torch.randn(1024, 512)) for _ in range(2))
    scalars = torch.tensor(scale, requires_grad=True), torch.tensor(bias, requires_grad=True)
    loss = sigmoid_loss(query, key, logit_scale=scalars[0], logit_bias=scalars[1], workspace_bytes=workspace_bytes)
    exact_scalars = exact(*scalars)
    true = reference.sigmoid_loss(*exact(query, key), logit_scale=exact_scalars[0], logit_bias=exact_scalars[1])
    got, want = torch.autograd.grad(loss, scalars[0])[0], torch.autograd.grad(true, exact_scalars[0])[0]
    assert float(got) == pytest.approx(float(want), rel=4e-6)


@pytest.mark.one_build
def test_a_parameter_that_was_clamped_has_a_gradient(backend):
    """CLIP and SigLIP clamp it after each step; in float64 the float32 number is a little above ln 100."""
    query, key = torch.randn(9, 4), torch.randn(9, 4)
    scale = torch.tensor(9.0).clamp(max=math.log(100)).requires_grad_()
    for loss in (
        info_nce(query, key, logit_scale=scale),
        sigmoid_loss(query, key, logit_scale=scale, logit_bias=torch.tensor(-1.0)),
    ):
        assert torch.autograd.grad(loss, scale)[0].abs() > 0.1


@pytest.mark.one_build
def test_learned_scale_and_bias_take_no_pass_over_the_columns(backend, monkeypatch):
    """It would read all gradients of the scores once more."""
    kind = type(backends.get_backend(backend))
    monkeypatch.setattr(kind, "add_columns_", lambda *_: pytest.fail("the columns are summed"))
    query, key = (torch.randn(40, 8, requires_grad=True) for _ in range(2))
    scale, bias = torch.tensor(1.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    sigmoid_loss(query, key, logit_scale=scale, logit_bias=bias).backward()
    assert scale.grad.isfinite()
    assert float(bias.grad)


def test_one_pair_has_no_loss(backend):
    query, key = torch.randn(1, 5, requires_grad=True), torch.randn(1, 5)
    loss = info_nce(query, key)
    loss.backward()
    assert loss.item() == 0
    assert not query.grad.any()


def test_two_pairs_match_a_hand_calculation(backend):
    query = torch.eye(2)
    loss = info_nce(query, query, temperature=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)


def test_a_batch_of_duplicates_has_no_negatives(backend):
    query, key = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    loss = info_nce(query, key, pair_ids=torch.full((7,), 2**60))
    assert loss.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, (query, key)))


def test_distinct_ids_do_not_change_a_bit(backend):
    query, key = torch.randn(50, 8), torch.randn(50, 8)
    ids = torch.randperm(50)
    plain, with_ids = (info_nce(query, key, pair_ids=i, reduction="none") for i in (None, ids))
    assert torch.equal(plain, with_ids)
    for a, b in zip(pair_scores(query, key), pair_scores(query, key, pair_ids=ids), strict=True):
        assert torch.equal(a, b)


def test_zero_weights_give_zero_in_the_graph(backend):
    query, key = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    loss = info_nce(query, key, pair_weights=torch.zeros(5))
    loss.backward()
    assert loss.item() == 0
    assert not query.grad.any()


def test_logit_scale_is_clamped(backend):
    query, key = torch.randn(9, 4), torch.randn(9, 4)
    for value in (-3.0, 9.0):
        logit_scale = torch.tensor(value, requires_grad=True)
        loss = info_nce(query, key, logit_scale=logit_scale)
        loss.backward()
        at_limit = info_nce(query, key, logit_scale=torch.tensor(min(max(value, 0.0), math.log(100))))
        assert loss.item() == at_limit.item()
        assert logit_scale.grad.item() == 0


@given(
    drawn=matrices(square=True),
    temperature=st.sampled_from([0.07, 1.0]),
    bank=st.sampled_from([0, 1, 40]),
    ids=st.booleans(),
)
def test_pair_scores_match_the_reference(backend, drawn, temperature, bank, ids):
    """bank: how many keys are nobody's."""
    drawn = served(backend, drawn)
    query, key = Matrices(**{**drawn.__dict__, "columns": drawn.rows + bank}).draw()
    options = {"temperature": temperature}
    if bank:
        generator = seeded(drawn.seed)
        options["targets"] = torch.randperm(drawn.rows + bank, generator=generator)[: drawn.rows]
    if ids:
        options |= {"pair_ids": some_ids(drawn, drawn.rows), "key_ids": some_ids(drawn, drawn.rows + bank)}
    got = pair_scores(query, key, **options)
    want = reference.pair_scores(query, key, **options)
    rough = reference.pair_scores(query, key, **options, product=reference.rough)
    s = (reference.exact(query, key) / temperature).detach()
    for name, g, r, t in zip(got._fields[:3], got, rough, want, strict=False):
        assert_contract(name, g, r, t, largest_logit(s))
    near = 1e-5 * (1 + float(reference.rough(query, key).detach().abs().max()) / temperature)
    targets = options.get("targets", torch.arange(drawn.rows))
    left_out = torch.zeros_like(s, dtype=torch.bool)
    if ids:
        left_out = options["pair_ids"][:, None] == options["key_ids"]
    own = s.gather(1, targets[:, None])
    slack = near if drawn.dtype != torch.bfloat16 else near + float(own.abs().max()) / 64
    assert_ranks(got, s.masked_fill(left_out, -math.inf), own, targets, slack)


def assert_ranks(got, s, own, targets, slack):
    """Check the ranks of the pairs' scores own[N, 1] among the scores s[N, M], which may be off by slack."""
    s = s.index_put((torch.arange(len(own)), targets), torch.tensor(-math.inf, dtype=s.dtype))
    for rank, matrix in ((got.rank_query, s), (got.rank_key, s[:, targets].T)):
        assert (rank >= (matrix > own + slack).sum(1)).all()
        assert (rank <= (matrix > own - slack).sum(1)).all()
        assert rank.dtype == got.pmi.dtype


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("spread", [0.3, 1.0])  # the smaller scores have one exponential each
def test_ranks_over_several_chunks_match_the_reference(backend, spread, ids, monkeypatch):
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    query, key = (x.detach() for x in Matrices(600, 700, 16, torch.float32, spread, False, 5).draw())
    assert plan.make_plan(600, 700, 16, query.dtype).rows < 600
    targets = torch.randperm(700, generator=seeded(5))[:600]
    row_ids, column_ids = torch.arange(600) // 2, torch.arange(700) % 300
    options = {"pair_ids": row_ids, "key_ids": column_ids} if ids else {}
    got = pair_scores(query, key, temperature=1.0, targets=targets, **options)
    s = reference.exact(query, key)
    left_out = row_ids[:, None] == column_ids if ids else torch.zeros_like(s, dtype=torch.bool)
    assert_ranks(got, s.masked_fill(left_out, -math.inf), s.gather(1, targets[:, None]), targets, 1e-4)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_exponential_gives_the_ranks_of_several(backend, dtype, ids, monkeypatch):
    query, key = (x.detach() for x in Matrices(130, 1100, 64, dtype, 0.3, False, 5).draw())
    key[900:] = key[:200]  # scores that tie with the pair's are not above it
    options = {
        "targets": torch.randperm(1100, generator=seeded(5))[:130],
        "column_lse": True,
        "ranks": True,
    }
    if ids:
        options |= {"row_ids": torch.arange(130) // 2, "column_ids": torch.arange(1100) % 80}
    got = sweep(query, key, **options)
    monkeypatch.setattr(problem.Problem, "allows_single_exp", lambda self: False)
    want = sweep(query, key, **options)
    assert torch.equal(got.row_rank, want.row_rank)
    assert torch.equal(got.column_rank, want.column_rank)
    for name in ("row_lse", "column_lse", "target"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_exponential_gives_the_sums_of_scores_of_several(backend, dtype, ids, monkeypatch):
    query, key = (x.detach().requires_grad_() for x in Matrices(130, 1100, 64, dtype, 0.3, False, 5).draw())
    scale = torch.tensor(1.5, requires_grad=True)
    options = {"targets": torch.randperm(1100, generator=seeded(5))[:130], "column_lse": True, "logit_sums": True}
    if ids:
        options |= {"row_ids": torch.arange(130) // 2, "column_ids": torch.arange(1100) % 80}

    def run():
        swept = sweep(query, key, scale=scale, **options)
        vectors = swept.row_lse, swept.column_lse, swept.target, swept.row_logits / 1100, swept.column_logits / 130
        parts = [(weight(len(v), k) * v.double()).sum() for k, v in enumerate(vectors)]
        return *(v.detach() for v in vectors), *torch.autograd.grad(sum(parts), (query, key, scale))

    def weight(count, seed):
        return torch.rand(count, generator=seeded(seed), dtype=torch.float64)

    got = run()
    monkeypatch.setattr(problem.Problem, "allows_single_exp", lambda self: False)
    exact = dtype == torch.float32
    for one, several in zip(got, run(), strict=True):
        gradient = one.dtype == dtype and one.dim() == 2
        atol = (2e-6 if exact or not gradient else 2**-7) * max(1.0, float(several.abs().max()))
        torch.testing.assert_close(one, several, rtol=0, atol=atol)


def test_perfect_pairs_rank_first_and_reach_log_n(backend):
    query = torch.eye(50)
    got = pair_scores(query, query, temperature=0.02)
    assert not got.rank_query.any()
    assert not got.rank_key.any()
    assert got.pmi.max().item() == pytest.approx(math.log(50), rel=1e-6)


@given(drawn=matrices(dtypes=(torch.float32, torch.bfloat16)), workspace_bytes=st.sampled_from([0, 1 << 20]))
def test_row_logsumexp_matches_the_reference(backend, drawn, workspace_bytes):
    query, key = drawn.draw()
    got = row_logsumexp(query, key, temperature=0.5, workspace_bytes=workspace_bytes)
    true_leaves = exact(query, key)
    want = reference.row_logsumexp(*true_leaves, temperature=0.5)
    rough = reference.row_logsumexp(query, key, temperature=0.5, product=reference.rough)
    assert_contract("lse", got, rough, want, largest_logit(reference.exact(query, key) * 2))
    bounds = [2 * float(other.detach().abs().max()) for other in (key, query)]
    check_gradients(drawn, ("query", "key"), got, rough, want, [(query, key), true_leaves], bounds)


def test_non_finite_operands_give_nan(backend):
    query, key = torch.randn(8, 4), torch.randn(8, 4)
    ids = torch.arange(8) // 2
    scale = {"logit_scale": torch.tensor(1.0), "logit_bias": torch.tensor(0.0)}
    query[3, 0] = float("nan")
    assert info_nce(query, key).isnan()
    assert info_nce(query, key, pair_ids=ids).isnan()
    for by_query in (
        info_nce(query, key, direction="query", reduction="none"),
        info_nce(query, key, direction="query", reduction="none", pair_ids=ids, label_smoothing=0.1),
        sigmoid_loss(query, key, reduction="none", **scale),
    ):
        assert by_query.isnan().tolist() == [i == 3 for i in range(8)]
    query[3, 0] = float("inf")
    assert pair_scores(query, key).pmi.isnan().all()
    assert sigmoid_loss(query, key, **scale).isnan()


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("own", [False, True])
def test_non_finite_negatives_give_nan(backend, own, value):
    """A score of -inf would pass for a masked entry."""
    query, key, negatives = torch.ones(3, 4), torch.randn(3, 4), torch.randn(3, 2, 4)
    negatives[1, 0, 0] = value
    options = {"direction": "query", "reduction": "none"}
    loss = info_nce(query, key, negatives=negatives if own else negatives.flatten(0, 1), **options)
    assert loss.isnan().tolist() == [i == 1 or not own for i in range(3)]


def test_the_chunk_size_does_not_change_the_columns(backend, monkeypatch):
    query, key = torch.randn(600, 16) * 3, torch.randn(600, 16) * 3
    options = {"reduction": "none", "pair_ids": torch.arange(600) // 2, "label_smoothing": 0.1}
    whole = info_nce(query, key, **options)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    assert error(info_nce(query, key, **options), whole) < 2.5e-4  # one ulp of the largest
