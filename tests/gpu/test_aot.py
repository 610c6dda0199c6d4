"""The Triton kernels compiled ahead of time for three architectures: no spills, shared memory within limits, matrix
instructions of the architecture's own. A subset of what bench/aot.py compiles; bench/results/aot.json has all of it."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))

import aot  # noqa: E402

from main_kernels import backends, checks  # noqa: E402
from main_kernels.sweep.backward import sweep_gradient_op  # noqa: E402
from main_kernels.sweep.gradient import Gradient  # noqa: E402
from main_kernels.sweep.inputs import GradientInputs, Inputs  # noqa: E402
from main_kernels.sweep.op import VECTORS, sweep_op  # noqa: E402

SHAPE = "bfloat16 8192x32768"
CASES = (
    f"reduce rows  {SHAPE}",
    f"reduce both ids {SHAPE}",
    f"reduce everything everything {SHAPE}",
    f"weigh rows  {SHAPE}",
    f"weigh both  {SHAPE}",
    f"weigh everything everything {SHAPE}",
    "chunk weigh both  bfloat16",
    "divergence JS both bfloat16 bfloat16",
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
@pytest.mark.parametrize("columns", [True, False], ids=["recomputed", "announced"])
def test_the_ops_read_nothing_from_the_device(columns, monkeypatch):
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
    monkeypatch.setitem(backends._BACKENDS, "triton", aot.TritonBackend())
    monkeypatch.setattr(checks, "on_device", lambda ok, message: True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # does not know the meta device
    with aot.compiling(90) as compiled:
        outputs = sweep_op._init_fn(*inputs)
        out = dict(zip([*VECTORS, "row_low", "column_low"], outputs, strict=False))
        buffers = [Gradient.empty(t) for t in (query, key)] if columns else None
        held = [plane for g in buffers for plane in (g.high, g.low)] if buffers else outputs[-4:]
        common = inputs._asdict()
        arguments = {name: common[name] for name in GradientInputs._fields if name in common}
        arguments |= {name: out[name] for name in GradientInputs._fields if name in out}
        arguments |= dict(zip(("d_query", "d_query_low", "d_key", "d_key_low"), held, strict=True))
        arguments |= {f"d_{name}": None for name in ("row", "column", "target", "row_logits", "column_logits")}
        arguments |= {"d_softplus": None, "d_loss": None, "uniform": not columns, "ready": not columns}
        if columns:
            arguments |= {"d_row": aot.empty(n), "d_column": aot.empty(m), "d_target": aot.empty(n)}
        else:
            arguments |= {"d_loss": aot.empty(1).expand(n)}
        none = aot.empty(0)
        arguments |= {"kept": none, "d_bias": none, "d_scale": none, "gradient": "recomputed" if columns else "forward"}
        sweep_gradient_op._init_fn(*GradientInputs(**arguments))
    launched = {name for name, _ in compiled}
    assert launched >= {"target_scores", "forward", "combine"}
    assert ("weights" in launched) == columns
    assert ("weigh" in launched) != columns


def test_the_table_that_is_kept_has_no_faults():
    kept = ROOT / "bench" / "results" / "aot.json"
    if not kept.exists():
        pytest.skip("bench/aot.py has not been run")
    table = json.loads(kept.read_text())
    assert table["faulty"] == 0
    assert {row["architecture"] for row in table["rows"]} == set(aot.ARCHITECTURES)
    assert not any(aot.faults(row) for row in table["rows"])
