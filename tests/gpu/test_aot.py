"""The Triton kernels compiled ahead of time for three architectures: no spills, shared memory within limits, matrix
instructions of the architecture's own. A subset of what bench/aot.py compiles; bench/results/aot.json has all of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))

import aot  # noqa: E402

from main_kernels import backends  # noqa: E402
from main_kernels.backends.interface import Wants  # noqa: E402
from main_kernels.sweep.gradient import Gradient  # noqa: E402
from main_kernels.sweep.inputs import Inputs, announced_of, make_problem  # noqa: E402
from main_kernels.sweep.walk import backward_walk, forward_walk  # noqa: E402

SHAPE = "bfloat16 8192x32768"
CASES = (
    f"reduce rows  {SHAPE}",
    f"reduce both ids {SHAPE}",
    f"reduce everything everything {SHAPE}",
    f"weigh rows  {SHAPE}",
    f"weigh both  {SHAPE}",
    f"weigh everything everything {SHAPE}",
    "chunk weigh both  bfloat16",
    "divergence JS bfloat16 bfloat16",
)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", aot.ARCHITECTURES)
def test_nothing_spills_and_products_run_on_tensor_cores(architecture):
    cases = (case for some in (aot.fused_cases(), aot.chunk_cases()) for case in some if case[0] in CASES)
    rows = list(aot.measured(cases, architecture))
    assert {row["kernel"] for row in rows} >= {"forward", "weights", "target_scores", "combine", "weigh", "divergence"}
    assert {row["case"] for row in rows} == set(CASES)
    for row in rows:
        assert not aot.faults(row), row


@pytest.mark.slow
@pytest.mark.parametrize("columns", [True, False])
def test_the_walks_read_nothing_from_the_device(columns):
    """Tensors of the meta device have no values to read: whoever waits for one fails."""
    n, m = 8192, 32768
    query, key = (aot.empty(rows, 1024, dtype=torch.bfloat16) for rows in (n, m))
    inputs = Inputs(
        query=query,
        key=key,
        scale=aot.empty(),
        bias=None,
        softcap=0.0,
        targets=aot.empty(n, dtype=torch.int64),
        complete=True,
        row_ids=None,
        column_ids=None,
        keep_target=True,
        row_lse=True,
        columns=columns,
        statistics=False,
        logit_sums=False,
        softplus=False,
        clip=0.0,
        announced=not columns,
        weights=None,
        label_smoothing=0.0,
        z_loss=0.0,
        grad_query=True,
        grad_key=True,
        grad_other=False,
        workspace=0,
        donate=True,
        backend="triton",
    )
    with aot.compiling(90) as compiled, pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends._BACKENDS, "triton", aot.TritonBackend())
        problem = make_problem(inputs, None)
        gradients = [Gradient.empty(t, 0 if columns else None) for t in (query, key)]
        out = forward_walk(
            problem,
            Wants(columns=columns),
            accumulator=torch.float32,
            announced=announced_of(inputs),
            kept=aot.empty(0, m),
            d_query=gradients[0],
            d_key=gradients[1],
        )
        upstream = announced_of(inputs).upstream(out.row_lse, m, targets=True)
        none = aot.empty(0)
        gradients = [Gradient.empty(t) for t in (query, key)]
        backward_walk(problem, upstream, kept=none, d_query=gradients[0], d_key=gradients[1], d_bias=none, d_scale=none)
    assert {name for name, _ in compiled} >= {"target_scores", "forward", "combine", "weights"}


def test_the_table_that_is_kept_has_no_faults():
    kept = ROOT / "bench" / "results" / "aot.json"
    if not kept.exists():
        pytest.skip("bench/aot.py has not been run")
    table = json.loads(kept.read_text())
    assert table["faulty"] == 0
    assert {row["architecture"] for row in table["rows"]} == set(aot.ARCHITECTURES)
    assert not any(aot.faults(row) for row in table["rows"])
