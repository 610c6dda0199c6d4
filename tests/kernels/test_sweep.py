"""The sweep's own vectors where scores are small, large or far apart: each is summed in one of several ways."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from main_kernels.backends import cpu, use_backend
from main_kernels.sweep import sweep

from .contract import error


@pytest.mark.parametrize(
    ("low", "high"), [(-1000, -900), (-200, 30), (-60, -50), (-45, -39), (-39, 5), (-0.01, 0.01), (-5, 39), (30, 45)]
)
@pytest.mark.parametrize("clip", [0.5, 5.0, 60.0, 200.0])
def test_off_diagonal_sums_match_the_reference(backend, low, high, clip):
    query, key = torch.ones(3, 1), torch.rand(5000, 1) * (high - low) + low
    got = sweep(query, key, targets=torch.arange(3), keep_target=False, softplus=True, logit_sums=True, clip=clip)
    scores = query.double() @ key.double().T
    others = torch.ones(3, 5000, dtype=torch.bool)
    others[range(3), range(3)] = False

    def log_sum_exp(x):
        return x.masked_fill(~others, -torch.inf).logsumexp(1)

    softplus = torch.where(others, torch.logaddexp(scores, scores.new_zeros(())), 0).sum(1)
    size = max(abs(low), abs(high), 9.0)
    assert error(got.softplus, softplus) <= 4e-7 * float(softplus.max())
    assert error(got.row_lse, log_sum_exp(scores)) <= 5e-7 * size
    assert error(got.clipped, log_sum_exp(scores.clamp(-clip, clip))) <= 5e-7 * size
    assert error(got.row_logits, torch.where(others, scores, 0).sum(1)) <= 4e-7 * size * 5000
    assert torch.equal(got.target, scores.diagonal()[:3].float())


@pytest.mark.parametrize("level", [-0.37, 0.9, 7.0])
def test_many_nearly_equal_summands_lose_no_digits(backend, level):
    """Rounding errors of equal terms have one sign: sums must be as good however few lanes an instruction set has."""
    query, key = torch.ones(1500, 1).requires_grad_(), level + 1e-4 * torch.rand(3000, 1)
    scale = torch.tensor(1.0, requires_grad=True)
    options = {"targets": torch.arange(1500), "softplus": True, "logit_sums": True, "column_lse": True, "clip": 5.0}
    got = sweep(query, key, scale=scale, workspace_bytes=0, **options)
    scores = query.detach().double() @ key.double().T
    relative = 2.5e-7  # two to four ulp
    for name, want in {
        "row_lse": scores.logsumexp(1),
        "column_lse": scores.logsumexp(0),
        "softplus": torch.nn.functional.softplus(scores).sum(1),
        "row_logits": scores.sum(1),
        "clipped": scores.clamp(-5, 5).logsumexp(1),
    }.items():
        assert error(getattr(got, name), want) <= relative * float(want.abs().max()), name
    (slope,) = torch.autograd.grad(got.softplus.sum(), scale)
    assert error(slope, (scores.sigmoid() * scores).sum()) <= relative * abs(float((scores.sigmoid() * scores).sum()))


@pytest.mark.parametrize("bias", [-30.0, -2.0, 0.4, 30.0])
@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28])
def test_one_bias_for_all_columns_has_the_gradients_of_its_copies(backend, bias, workspace_bytes):
    """Also with masked entries and an ignored row. Its gradient needs no pass over the scores."""
    query, key, upstream = torch.randn(70, 6), torch.randn(2100, 6), torch.randn(2, 70)
    ids, targets = (torch.arange(70) % 9, torch.arange(2100) % 9), torch.arange(70).where(torch.arange(70) != 5, -1)
    grads = []
    for copied in (False, True):
        leaves = [x.clone().requires_grad_() for x in (query, key, torch.tensor(1.7), torch.tensor(bias))]
        got = sweep(
            *leaves[:2],
            scale=leaves[2],
            bias=leaves[3].expand(2100) if copied else leaves[3],
            targets=targets,
            ignore_index=-1,
            row_ids=ids[0],
            column_ids=ids[1],
            keep_target=False,
            row_lse=False,
            softplus=True,
            workspace_bytes=workspace_bytes,
        )
        grads.append(torch.autograd.grad((got.softplus * upstream[0] + got.target * upstream[1]).sum(), leaves))
    for one, of_copies in zip(*grads, strict=True):
        assert error(one, of_copies.double()) <= 2e-6 * max(float(of_copies.abs().max()), 1.0)
    scores = (query.double() @ key.double().T + bias) * 1.7
    slopes = scores.sigmoid().masked_fill(ids[0][:, None] == ids[1], 0).sum(1)
    want = 1.7 * (slopes * upstream[0] + upstream[1])[targets >= 0].sum()
    assert error(grads[0][3], want) <= 1e-6 * float((slopes.abs() * upstream[0].abs()).sum() + 1)


@pytest.mark.parametrize("workspace_bytes", [0, 1 << 28])
@pytest.mark.parametrize("of_target", [False, True])
def test_the_gradient_of_the_scale_has_the_part_of_a_fixed_bias(backend, of_target, workspace_bytes):
    """The bias of all columns needs no gradient, so its part cannot come from there."""
    query, key = torch.randn(40, 6), torch.randn(50, 6)
    scale = torch.tensor(1.7, requires_grad=True)
    options = {"bias": torch.tensor(-3.0), "targets": torch.arange(40), "row_lse": False, "softplus": True}
    got = sweep(query, key, scale=scale, **options, workspace_bytes=workspace_bytes)
    (slope,) = torch.autograd.grad((got.target if of_target else got.softplus).sum(), scale)
    products = query.double() @ key.double().T - 3
    want = products.diagonal().sum() if of_target else ((1.7 * products).sigmoid() * products).sum()
    assert float(slope) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_the_kernels_use_the_instruction_set_that_torch_uses(level):
    names = cpu.instruction_sets()
    own = {"default": "baseline"}.get(level, level)
    if own not in names:
        pytest.skip("this processor does not support it, or the C++ kernels are not built")
    script = "from main_kernels.backends import cpu; print(cpu.MODULE.instruction_set())"
    switched = {**os.environ, "ATEN_CPU_CAPABILITY": level}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=switched)
    assert done.stdout.split() == [own]


def test_every_instruction_set_can_be_chosen():
    names = cpu.instruction_sets()
    if not names:
        pytest.skip("the C++ kernels are not built")
    assert names[-1] == "baseline"
    before = cpu.MODULE.instruction_set()
    assert before == {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "baseline")
    for name in names:
        with use_backend("cpu", instruction_set=name):
            assert cpu.MODULE.instruction_set() == name
    assert cpu.MODULE.instruction_set() == before
    with (
        pytest.raises(ValueError, match=r"instruction_set: expected .*, got 'mmx'"),
        use_backend("cpu", instruction_set="mmx"),
    ):
        pass


def test_a_fully_masked_row_has_defined_reductions(backend):
    """Its log-sum-exp is that of nothing; sums are zero; gradients are zero, not NaN."""
    query, key = (torch.randn(n, 4, requires_grad=True) for n in (3, 5))
    ids = torch.zeros(3, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    options = {"row_ids": ids[0], "column_ids": ids[1], "keep_target": False, "column_lse": True}
    for workspace_bytes in (0, 1 << 20):
        got = sweep(
            query,
            key,
            targets=torch.arange(3),
            softplus=True,
            logit_sums=True,
            workspace_bytes=workspace_bytes,
            **options,
        )
        assert (got.row_lse == -torch.inf).all()
        assert (got.column_lse == -torch.inf).all()
        assert not got.softplus.any()
        assert not got.row_logits.any()
        total = got.softplus.sum() + got.row_logits.sum() + got.row_lse.sum() + got.column_lse.sum()
        assert not any(g.any() for g in torch.autograd.grad(total, (query, key)))
