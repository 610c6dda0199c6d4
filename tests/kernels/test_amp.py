"""Under autocast every function takes what F.linear takes: operands of any narrow dtypes, cast, then checked."""

from __future__ import annotations

import pytest
import torch

from .calls import PUBLIC, values_and_gradients
from .contract import DEVICE, error

FULL_PRECISION = ("segment_pool", "cyclic", "relational", "mutual_information_club")  # autocast leaves these alone
DTYPES = [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float32)]


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_autocast_unifies_operands_of_different_dtypes(name, dtypes):
    query, key = (torch.randn(12, 8).to(dtype).requires_grad_() for dtype in dtypes)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = values_and_gradients(PUBLIC[name], query, key)
    product_dtype = torch.float32 if name.startswith(FULL_PRECISION) else torch.bfloat16
    want = values_and_gradients(lambda q, k: PUBLIC[name](q.to(product_dtype), k.to(product_dtype)), query, key)
    # the bounds' CLUB is left alone and pooled states leave in their own dtype; an operand used twice has two gradients
    # to add, rounded in one case only
    exact = 1e-2 if name.startswith(("mutual_information_bounds", "segment_pool")) else 1e-6
    for place, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        if theirs is None or not theirs.is_floating_point():
            assert mine is theirs or torch.equal(mine, theirs)
            continue
        mine, theirs = mine.nan_to_num(), theirs.nan_to_num()
        tolerance = exact if place < len(got) - 2 else 1e-2
        assert error(mine, theirs) <= tolerance * max(1.0, float(theirs.abs().max()))
    for leaf, gradient in zip((query, key), got[-2:], strict=True):
        assert gradient is None or gradient.dtype == leaf.dtype


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.startswith("segment_pool")])
def test_different_dtypes_are_refused_without_autocast(name):
    query, key = torch.randn(12, 8, dtype=torch.bfloat16), torch.randn(12, 8)
    with pytest.raises(ValueError, match="got dtype torch"):
        PUBLIC[name](query, key)


def test_float64_is_not_cast_by_autocast_and_is_refused():
    with torch.autocast(DEVICE, dtype=torch.bfloat16), pytest.raises(ValueError, match="got dtype torch"):
        PUBLIC["row_logsumexp"](torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2))


@pytest.mark.parametrize("name", ["linear_cross_entropy", "info_nce", "linear_kl"])
def test_a_graph_under_autocast_has_the_same_gradients(name):
    torch._dynamo.reset()
    query, key = (torch.randn(12, 8, device=DEVICE, requires_grad=True) for _ in range(2))

    def call(query, key):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return PUBLIC[name](query, key).sum()

    graph = torch.compile(call, fullgraph=True, backend="aot_eager")
    eager, traced = (torch.autograd.grad(run(query, key), (query, key)) for run in (call, graph))
    assert all(map(torch.equal, eager, traced))
