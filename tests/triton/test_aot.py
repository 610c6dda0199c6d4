"""The Triton kernels compiled ahead of time for three architectures: no spills, shared memory within limits, matrix
instructions of the architecture's own. A subset of what bench/aot/ compiles; bench/results/aot.json has all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")
from bench.aot.__main__ import ARCHITECTURES, measured
from bench.aot.cases import chunk_cases, fused_cases
from bench.aot.limits import faults

ROOT = Path(__file__).parents[2]

SHAPE = "bfloat16 8192x32768"
WALKS = (
    f"reduce rows {SHAPE}",
    f"reduce both {SHAPE}",
    f"score_grad softplus bias others {SHAPE}",
    f"score_grad both softcap {SHAPE}",
)
CHUNKS = (
    "chunk reduce both bfloat16",
    "chunk row_loss rows bfloat16",
    "chunk score_grad both bfloat16",
    "divergence JS both bfloat16 bfloat16",
)
KERNELS = {
    WALKS: {
        "fused_reduce",
        "fused_score_grad",
        "two_sided_reduce",
        "exact_columns",
        "whole_score_grad",
        "target_scores",
        "reduce_partials",
    },
    CHUNKS: {"reduce_both", "row_loss", "score_grad", "divergence"},
}
# Walks differ by architecture more than what multiplies nothing. The one of sm_90 alone is the forward of sigmoid_loss.
CASES = {80: WALKS, 90: (*WALKS, f"reduce sigmoid bias others {SHAPE}", *CHUNKS), 100: WALKS}


@pytest.mark.longest
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_spills_and_products_run_on_tensor_cores(architecture):
    cases = (case for some in (fused_cases(), chunk_cases()) for case in some if case[0] in CASES[architecture])
    rows = list(measured(cases, architecture))
    found = {row["kernel"] for row in rows}
    assert all(found >= kernels for cases, kernels in KERNELS.items() if set(cases) <= set(CASES[architecture]))
    assert {row["case"] for row in rows} == set(CASES[architecture])
    for row in rows:
        assert not faults(row), row


def test_walks_of_an_h100_are_recorded_and_limited():
    name = f"reduce both {SHAPE}"
    cases = (case for case in fused_cases() if case[0] == name)
    row = next(row for row in measured(cases, 90) if row["kernel"] == "two_sided_reduce")
    assert row["epilogue_instructions"] > 500
    assert row["epilogue_barriers"] > 0
    assert not faults(row)
    assert "cycles" in faults({**row, "epilogue_cycles": 5000})[0]
    assert "global loads" in faults({**row, "epilogue_global_loads": 3})[0]
    assert "in flight" in faults({**row, "pending_products": 0})[0]
    assert "bytes per cycle" in faults({**row, "product_columns": 64})[0]
    assert "2 planned" in faults({**row, "num_warps": 8})[0]


def test_kernels_between_products_are_limited_by_memory():
    name = "chunk row_loss rows bfloat16"
    (row,) = measured((case for case in chunk_cases() if case[0] == name), 90)
    assert row["programs_planned"] == 1
    assert not faults(row)
    assert "instructions" in faults({**row, "issued": 1400})[0]


def test_the_table_that_is_kept_has_no_faults():
    kept = ROOT / "bench" / "results" / "aot.json"
    if not kept.exists():
        pytest.skip("python -m bench aot has not been run")
    table = json.loads(kept.read_text())
    assert table["faulty"] == 0
    assert {row["architecture"] for row in table["rows"]} == set(ARCHITECTURES)
    assert not any(faults(row) for row in table["rows"])
