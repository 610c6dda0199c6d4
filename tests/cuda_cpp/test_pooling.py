"""The library's own tests of segment_pool on the emulated kernels, and what only a device has: many blocks to a
segment, rows of several blocks, reads of 16 bytes, and threads in any order."""

from __future__ import annotations

import itertools

import pytest
import torch

from main_kernels import backends, segment_pool

from ..kernels import test_pooling as library
from ..kernels.contract import error

pytestmark = pytest.mark.slow  # the emulator takes a quarter of a minute to compile
OF_THE_MACHINE = {"test_backends_agree", "test_gradcheck_passes_in_float64", "test_an_invalid_argument_is_refused"}
for _name in dir(library):
    if _name.startswith("test_") and _name not in OF_THE_MACHINE:
        globals()[_name] = getattr(library, _name)

UNIT = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def gradients(hidden, offsets, weighted, attention, mode="mean", normalize=True, dtype=None):
    """pooled, d_hidden, d_weights, d_query of one and the same drawn problem; computed from ``dtype`` if given."""
    rows, width = hidden.shape
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(len(offsets) - 1, width, generator=generator).to(hidden.dtype)
    hidden, up = (t.detach().to(dtype or hidden.dtype) for t in (hidden, up))
    weights = (torch.rand(rows, generator=generator) + 0.1).requires_grad_() if weighted else None
    query = (torch.randn(width, generator=generator) / width**0.5).requires_grad_() if attention else None
    mode = "attention" if attention else mode
    pooled = segment_pool(
        hidden.requires_grad_(), offsets, mode=mode, row_weights=weights, query=query, normalize=normalize
    )
    leaves = [leaf for leaf in (hidden, weights, query) if leaf is not None]
    return pooled.detach(), *torch.autograd.grad(pooled, leaves, up)


def compare(hidden, offsets, *options):
    """With the plain backend in float64, from the same numbers."""
    mine = gradients(hidden, offsets, *options)
    with backends.use_backend("plain"):
        exact = gradients(hidden, offsets, *options, dtype=torch.float64)
    for got, want in zip(mine, exact, strict=True):
        assert bool(got.isfinite().all())
        assert error(got, want) <= (UNIT[got.dtype] + 1e-6) * float(want.abs().max())


@pytest.mark.parametrize(
    ("lengths", "width", "dtype"),
    [
        ([0, 700, 0], 264, torch.bfloat16),
        ([3, 1, 300, 64, 0, 65, 128, 2], 260, torch.float32),
        ([3, 1, 300, 64, 0, 65, 128, 2], 37, torch.bfloat16),
        ([1, 0, 2] * 100, 8, torch.float16),  # more segments than one step of the search tells apart
    ],
)
@pytest.mark.parametrize(("weighted", "attention"), list(itertools.product([False, True], repeat=2)))
def test_a_segment_cut_into_pieces_gives_the_same(backend, lengths, width, dtype, weighted, attention):
    offsets = torch.tensor([2, *lengths]).cumsum(0)
    hidden = torch.randn(int(offsets[-1]) + 70, width).to(dtype)  # more than a piece belongs to no segment
    compare(hidden, offsets, weighted, attention, "mean", False)  # normalising would hide a wrong scale


@pytest.mark.parametrize(("width", "dtype"), [(8200, torch.bfloat16), (4100, torch.float32), (1030, torch.float16)])
@pytest.mark.parametrize("mode", ["mean", "last", "attention"])
def test_rows_wider_than_a_block_match_the_reference(backend, width, dtype, mode):
    hidden, offsets = torch.randn(80, width).to(dtype), torch.tensor([0, 70, 75])
    compare(hidden, offsets, mode != "last", mode == "attention", mode)


@pytest.mark.parametrize("start", [0, 1])
def test_an_embedding_does_not_depend_on_its_place_in_the_pack(backend, start):
    """Pieces are cut from a segment's own first row; unaligned memory is read element by element."""
    flat = torch.randn(300 * 64 + 1)[start:]
    segment = flat[: 150 * 64].view(150, 64)
    alone = segment_pool(segment, torch.tensor([0, 150]), mode="attention", query=segment[3])
    pack = torch.cat([torch.randn(45, 64), segment, torch.randn(9, 64)])
    packed = segment_pool(pack, torch.tensor([0, 45, 195, 204]), mode="attention", query=segment[3])
    assert start or torch.equal(alone[0], packed[1])
    assert error(alone[0], packed[1]) < 1e-6


@pytest.mark.parametrize(("weighted", "attention"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("normalize", [False, True])
def test_the_order_of_threads_does_not_change_a_bit(backend, emulated, weighted, attention, normalize):
    """Where it does, a barrier is missing."""
    hidden, offsets = torch.randn(200, 264), torch.tensor([1, 1, 140, 160, 190])
    runs = []
    try:
        for order in range(4):
            emulated.order(order)
            runs.append(gradients(hidden, offsets, weighted, attention, normalize=normalize))
    finally:
        emulated.order(0)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_unchecked_offsets_stay_in_bounds(backend, monkeypatch):
    """In a captured graph they cannot be read: whatever they are, no row outside the tensors is touched."""
    monkeypatch.setattr("main_kernels.checks.check_offset_values", lambda *_: None)
    hidden = torch.randn(100, 8)
    for offsets in ([-5, 1000], [90, 3, 50], [1 << 40, -(1 << 40), 7]):
        gradients(hidden, torch.tensor(offsets), True, True)
