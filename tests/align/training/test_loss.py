"""MutualAlignmentLoss without a model or trainer."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("trl")

import torch
from main_align.errors import UserError
from main_align.training import AlignmentArguments, AlignmentTerms, Likelihoods, MutualAlignmentLoss
from main_align.training.synthetic_weight import SyntheticWeight
from main_align.training.terms import EMBEDDING_TERMS, LIKELIHOOD_TERMS
from torch.nn.functional import normalize

from main_kernels import reference
from tests.align.tiny_models import DEVICE

pytestmark = pytest.mark.usefixtures("on_the_device")


def sides(count=6, width=5, dtype=torch.float32):  # type: ignore[no-untyped-def]
    return (torch.randn(count, width, dtype=dtype, requires_grad=True) for _ in range(2))


def likelihoods(count=6):  # type: ignore[no-untyped-def]
    logp = [(-10 * torch.rand(count)).requires_grad_() for _ in range(4)]
    return Likelihoods(*logp, torch.randint(1, 9, (count,)), torch.randint(1, 9, (count,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_loss_is_the_weighted_sum_of_its_terms(dtype):
    alignment = AlignmentTerms(
        forward_weight=0.5,
        reverse_weight=0.25,
        semantic_weight=2.0,
        intentional_weight=0.3,
        duality_gap_weight=0.7,
        structural_weight=1.5,
    )
    query, key = sides(dtype=dtype)
    given = likelihoods()
    value, metrics = MutualAlignmentLoss(alignment)(query, key, given)
    q, k = normalize(query.double(), dim=1), normalize(key.double(), dim=1)
    y_given_x, x_given_y, y, x, tokens_y, tokens_x = (part.double() for part in given)
    wanted = {
        "semantic": reference.info_nce(q, k, temperature=0.07),
        "intentional": -reference.mutual_information(q, k, temperature=0.07, estimator="js"),
        "structural": reference.cyclic_consistency(q, k),
        "forward": -y_given_x.sum() / tokens_y.sum(),
        "reverse": -x_given_y.sum() / tokens_x.sum(),
        "duality_gap": ((x + y_given_x - y - x_given_y).abs() / (tokens_x + tokens_y)).mean(),
    }
    rtol = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for name, term in wanted.items():
        torch.testing.assert_close(metrics[name].double(), term, rtol=rtol, atol=1e-6, msg=name)
    total = sum(alignment.weight(name) * term for name, term in wanted.items())
    torch.testing.assert_close(value.detach().double(), total.detach(), rtol=rtol, atol=1e-6)
    value.backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (query, key, *given[:4]))


def test_perfect_pairs_rank_first():
    query = torch.eye(8)
    _, metrics = MutualAlignmentLoss(AlignmentTerms(semantic_weight=1.0))(query, query.clone())
    assert metrics["accuracy_x_to_y"] == metrics["accuracy_y_to_x"] == 1
    assert float(metrics["mi"]) == pytest.approx(math.log(8), abs=1e-4)
    assert not any(value.requires_grad for value in metrics.values())


def test_pairs_with_the_same_id_are_not_negatives():
    query, key = (torch.randn(4, 5) for _ in range(2))
    loss = MutualAlignmentLoss(AlignmentTerms(semantic_weight=1.0, intentional_weight=0, structural_weight=0))
    apart, _ = loss(query, key)
    together, _ = loss(query, key, pair_ids=torch.zeros(4, dtype=torch.int64))
    assert float(apart) > 0
    assert float(together) == pytest.approx(0, abs=1e-6)


def test_embeddings_or_likelihoods_alone_are_enough():
    query, key = sides()
    only_pairs = MutualAlignmentLoss()(query, key)[1]
    assert set(only_pairs) == {"semantic", "intentional", "structural", "mi", "accuracy_x_to_y", "accuracy_y_to_x"}
    given = likelihoods()._replace(y=None, x=None)
    assert set(MutualAlignmentLoss(AlignmentTerms(duality_gap_weight=1.0))(likelihoods=given)[1]) == {
        "forward",
        "reverse",
    }


@pytest.mark.parametrize("strict", [False, True])
def test_the_loss_is_exported_for_any_number_of_pairs(strict):
    shapes = {name: {0: torch.export.Dim("pairs", min=2)} for name in ("query", "key")}
    loss = MutualAlignmentLoss()
    graph = torch.export.export(loss, tuple(torch.randn(2, 6, 5)), dynamic_shapes=shapes, strict=strict).module()
    query, key = torch.randn(2, 9, 5)
    torch.testing.assert_close(graph(query, key), loss(query, key))


def test_a_single_pair_gives_zero_in_the_graph_and_warns_once(caplog):
    loss = MutualAlignmentLoss(AlignmentTerms(semantic_weight=1.0))
    query, key = sides(count=1)
    for _ in range(2):
        value, _ = loss(query, key)
    value.backward()
    assert float(value) == 0
    assert query.grad is not None
    assert not query.grad.any()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"semantic_weight": -1.0}, "semantic_weight must be finite and not negative"),
        ({"reverse_weight": float("inf")}, "reverse_weight must be finite and not negative"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature: expected a positive number"),
        ({"contrastive_temperature": math.inf}, "contrastive_temperature: expected a positive number .*, got inf"),
        ({"contrastive_temperature": 1e-320}, "contrastive_temperature: expected a positive number .*, got 1e-320"),
        ({"mi_estimator": "mine"}, "mi_estimator must be one of infonce, nwj, dv, js, smile"),
        (
            {f"{term}_weight": 0.0 for term in EMBEDDING_TERMS + LIKELIHOOD_TERMS},
            "all terms have weight 0",
        ),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MutualAlignmentLoss(AlignmentTerms(**options))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("semantic_weight", "x", "must be a number, got 'x'"),
        ("projection_dim", 1.5, "must be a whole number, got 1.5"),
        ("mi_estimator", 5, "must be text, got 5"),
        ("contrast_across_accumulation", "no", "must be true or false, got 'no'"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(name, value, message):
    with pytest.raises(TypeError, match=f"^{name} {message}"):
        AlignmentArguments(**{name: value}).check()
    with pytest.raises(TypeError, match="alignment must be of type AlignmentTerms or null, got 'x'"):
        MutualAlignmentLoss("x")


def test_invalid_calls_are_refused():
    query, key = sides()
    loss = MutualAlignmentLoss()
    with pytest.raises(ValueError, match="expected both or neither"):
        loss(query)
    with pytest.raises(ValueError, match="no term can be computed"):
        loss()
    with pytest.raises(ValueError, match=r"key: expected .*, got 3 columns"):
        loss(query, key[:, :3])
    with pytest.raises(ValueError, match="key: expected 1 rows, got 6 rows"):
        loss(query[:1], key)
    with pytest.raises(ValueError, match="query: expected two dimensions, got shape"):
        loss(query[0], key[0])
    with pytest.raises(ValueError, match=r"query: expected float32, .*, got dtype torch.int64"):
        loss(query.long(), key.long())
    with pytest.raises(TypeError, match="query: expected a tensor"):
        loss(query.tolist(), key)


@pytest.mark.parametrize(
    ("part", "value", "error", "message"),
    [
        ("x", torch.zeros(6, 1), ValueError, r"x: expected \(6,\), got shape \(6, 1\)"),
        ("tokens_y", torch.ones(5, dtype=torch.int64), ValueError, r"tokens_y: expected \(6,\), got shape \(5,\)"),
        ("tokens_x", torch.ones(6), ValueError, "tokens_x: expected int64, got dtype torch.float32"),
        ("y_given_x", [0.0] * 6, TypeError, "y_given_x: expected a tensor"),
        ("y_given_x", torch.tensor(1.0), ValueError, r"y_given_x: expected \(1,\), got shape \(\)"),
    ],
)
def test_likelihoods_that_do_not_fit_are_refused(part, value, error, message):
    """Two shapes that broadcast would give another mean."""
    value = value.to(DEVICE) if isinstance(value, torch.Tensor) else value
    with pytest.raises(error, match=rf"^likelihoods\.{message}"):
        MutualAlignmentLoss(AlignmentTerms(duality_gap_weight=1.0))(likelihoods=likelihoods()._replace(**{part: value}))


def test_the_synthetic_weight_follows_the_ratio_of_the_running_losses():
    alpha, device = SyntheticWeight("loss_ratio", 0.5), torch.device("cpu")
    assert float(alpha.at(0, device)) == 0.5
    alpha.observe(torch.tensor([2.0, torch.nan]))
    assert float(alpha.at(0, device)) == 0.5  # nothing synthetic has been seen
    alpha.observe(torch.tensor([2.0, 6.0]))
    assert float(alpha.at(0, device)) == pytest.approx(2 / 8)
    alpha.observe(torch.tensor([torch.nan, 16.0]))
    assert float(alpha.at(0, device)) == pytest.approx(2 / (2 + 0.9 * 6 + 0.1 * 16))


def test_constant_and_linear_schedules_give_their_weights():
    device = torch.device("cpu")
    assert [float(SyntheticWeight("linear", 0.8).at(p, device)) for p in (0.0, 0.5, 1.0)] == pytest.approx(
        [0, 0.4, 0.8]
    )
    constant = SyntheticWeight("constant", 0.3)
    constant.observe(torch.tensor([1.0, 1.0]))
    assert float(constant.at(0.7, device)) == pytest.approx(0.3)
    with pytest.raises(UserError, match="loss_ratio, constant, linear"):
        SyntheticWeight("cosine", 0.5)
    with pytest.raises(UserError, match="from 0 to 1"):
        SyntheticWeight("constant", 1.5)
