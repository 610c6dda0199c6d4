"""segment_pool against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from main_kernels import oracle, segment_pool

from .contract import DTYPES, assert_contract, exact


def dense(hidden, offsets, mode, normalize):
    rows = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        if begin == end:
            rows.append(hidden.new_zeros(hidden.shape[1]))
            continue
        part = hidden[begin:end]
        row = part.mean(0) if mode == "mean" else part[-1]
        rows.append(torch.nn.functional.normalize(row, dim=0) if normalize else row)
    return torch.stack(rows)


@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 5, 33]), min_size=1, max_size=6),
    before=st.sampled_from([0, 3]),
    after=st.sampled_from([0, 4]),
    width=st.sampled_from([1, 7, 64]),
    dtype=st.sampled_from(DTYPES),
    mode=st.sampled_from(["mean", "last"]),
    normalize=st.booleans(),
    offset_dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_matches_the_oracle(backend, lengths, before, after, width, dtype, mode, normalize, offset_dtype):
    if backend == "cpu" and dtype == torch.float64:
        dtype = torch.float32
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = before + sum(lengths) + after
    if rows == 0:
        rows = 1
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    offsets = torch.tensor([before, *lengths]).cumsum(0).to(offset_dtype)
    got = segment_pool(hidden, offsets, mode=mode, normalize=normalize)
    (true_hidden,) = exact(hidden)
    want = oracle.segment_pool(true_hidden, offsets, mode=mode, normalize=normalize)
    rough = dense(hidden, offsets, mode, normalize)
    assert got.dtype == dtype
    assert_contract("pooled", got, rough, want, 1.0)
    up = torch.randn(want.shape, generator=generator).to(dtype)
    if want.requires_grad:
        mine, theirs = (torch.autograd.grad(o, hidden, up.to(o.dtype))[0] for o in (got, rough))
        (true,) = torch.autograd.grad(want, true_hidden, up.double())
        shortest = float(got.detach().double().norm(dim=1).clamp(min=1e-3).min()) if not normalize else 1.0
        norms = oracle.segment_pool(hidden, offsets, mode=mode, normalize=False).norm(dim=1)
        small = float(norms[norms > 0].min()) if normalize and bool((norms > 0).any()) else 1.0
        assert_contract("d_hidden", mine, theirs, true, float(up.abs().max()) * width / min(small, shortest))


def test_zero_rows_stay_zero_and_pass_no_gradient(backend):
    hidden = torch.zeros(4, 3, requires_grad=True)
    pooled = segment_pool(hidden, torch.tensor([0, 2, 4]))
    assert not pooled.any()
    pooled.sum().backward()
    assert not hidden.grad.any()


def test_bad_numbers_come_out_as_nan(backend):
    hidden = torch.randn(4, 3)
    hidden[1, 1] = float("nan")
    pooled = segment_pool(hidden, torch.tensor([0, 2, 4]))
    assert pooled[0].isnan().any()
    assert not pooled[1].isnan().any()


@pytest.mark.parametrize("offsets", [[0, 3, 2], [-1, 2], [0, 9]])
def test_bad_offsets_are_refused(backend, offsets):
    with pytest.raises(ValueError, match="cu_seqlens"):
        segment_pool(torch.randn(4, 3), torch.tensor(offsets))
