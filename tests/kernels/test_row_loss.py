"""The kernel that reduces a row and computes its gradient at once, against the two kernels that it replaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from main_kernels.backends import ScoreMap, cpu, get_backend
from main_kernels.backends.accumulators import Lse, ReductionSpec, RowAccumulators
from main_kernels.backends.in_steps import InSteps
from main_kernels.backends.structs import LossTerms, Mask

ROWS, COLUMNS = 5, 2200  # three blocks of columns, the last one short
CPU = torch.device("cpu")

MAPS = {
    "plain": ScoreMap(torch.tensor(1.5)),
    "softcap": ScoreMap(torch.tensor(0.5), softcap=3.0),
    "bias": ScoreMap(
        torch.tensor(1.5), bias=torch.linspace(-2, 2, COLUMNS).where(torch.arange(COLUMNS) % 7 > 0, -torch.inf)
    ),
}
MAPS["softcapped bias"] = ScoreMap(torch.tensor(0.5), 3.0, MAPS["bias"].bias)
IDS = torch.arange(COLUMNS, dtype=torch.int32) % 11
MASKS = {"no mask": None, "mask": Mask(IDS[:ROWS], IDS, True), "mask of targets too": Mask(IDS[:ROWS], IDS, False)}
MASKS["mask of targets alone"] = Mask(None, None, False)


@pytest.fixture(autouse=True, params=cpu.instruction_sets())
def _build(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.device("cpu"), cpu.use_instruction_set(request.param):
        yield


def _accumulators() -> RowAccumulators:
    sums = RowAccumulators.empty(ROWS, torch.float32, CPU, ReductionSpec(logit_sums=True))
    sums.finished_lse = Lse(torch.empty(ROWS), torch.empty(ROWS))
    return sums


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("score_map", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_equals_two(dtype, score_map, mask):
    torch.manual_seed(0)
    backend = get_backend("cpu")
    raw = torch.randn(ROWS, COLUMNS) * torch.tensor([1.0, 30.0, 1e-3, 5.0, 0.0])[:, None]
    raw[3] += torch.linspace(0, 40, COLUMNS)  # every block has a larger maximum than those before it
    raw = raw.to(dtype)
    targets = torch.tensor([0, COLUMNS - 1, 1030, 2, 11])  # of rows 2 and 4 masked, of row 0 excluded by the bias
    loss = LossTerms(torch.rand(ROWS) + 0.5, torch.rand(ROWS) * 0.01, -torch.rand(ROWS), torch.randn(ROWS) * 0.01)
    one, two = raw.clone(), raw.clone()
    got, want = _accumulators(), _accumulators()
    backend.row_loss_(one, MAPS[score_map], targets, MASKS[mask], got, loss, one)
    InSteps.row_loss_(backend, two, MAPS[score_map], targets, MASKS[mask], want, loss, two)
    torch.testing.assert_close(got.finished_lse.high, want.finished_lse.high, rtol=1e-6, atol=1e-6)
    assert torch.equal(got.target, want.target)
    torch.testing.assert_close(got.logits, want.logits)
    rounding = 1e-6 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(one, two, rtol=rounding, atol=1e-6)


def test_a_row_without_entries_has_no_gradient():
    sums, raw = _accumulators(), torch.randn(ROWS, COLUMNS)
    nothing = ScoreMap(torch.tensor(1.0), bias=torch.full((COLUMNS,), -torch.inf))
    loss = LossTerms(torch.ones(ROWS), None, -torch.ones(ROWS), torch.ones(ROWS))
    get_backend("cpu").row_loss_(raw, nothing, torch.zeros(ROWS, dtype=torch.int64), None, sums, loss, raw)
    assert (sums.finished_lse.high == -torch.inf).all()
    assert (sums.finished_lse.low == 0).all()
    assert not raw.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_product_that_is_not_finite_makes_its_row_nan(bad):
    sums, raw = _accumulators(), torch.randn(ROWS, COLUMNS)
    raw[1, 2100] = bad
    loss = LossTerms(torch.ones(ROWS), None, -torch.ones(ROWS))
    get_backend("cpu").row_loss_(raw, MAPS["plain"], torch.zeros(ROWS, dtype=torch.int64), None, sums, loss, raw)
    assert sums.finished_lse.high.isnan().tolist() == [row == 1 for row in range(ROWS)]
    assert raw[1].isnan().all()
