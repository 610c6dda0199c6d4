"""The parts of a LLaMA layer on the CPU against float64, and rounded where transformers rounds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from main_kernels import layers
from main_kernels.backends import cpu
from main_kernels.layers import rms_norm, rotary, silu_mul

from .contract import DEVICE

pytestmark = [
    pytest.mark.skipif(cpu.MODULE is None, reason="the C++ kernels are not built"),
    pytest.mark.skipif(DEVICE != "cpu", reason="kernels of CPUs"),
]
BUILDS = cpu.instruction_sets()
DTYPES = [torch.float32, torch.bfloat16]
COUNTS = st.integers(1, 70)
FACTORS = st.sampled_from([1e-3, 1.0, 30.0])


def drawn(*shape: int, seed: int, factor: float = 1.0) -> torch.Tensor:
    return factor * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("build", BUILDS)
@given(rows=COUNTS, width=st.sampled_from([1, 5, 64, 576, 2050]), factor=FACTORS, seed=st.integers(0, 99))
def test_rms_norm_is_that_of_float64(build, rows, width, factor, seed):
    x, weight = drawn(2, rows, width, seed=seed, factor=factor), drawn(width, seed=seed + 1)
    wanted = weight.double() * x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    with cpu.use_instruction_set(build):
        torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("build", BUILDS)
@given(rows=COUNTS, width=st.sampled_from([1, 5, 64, 1536]), factor=FACTORS, seed=st.integers(0, 99))
def test_silu_mul_is_that_of_float64(build, rows, width, factor, seed):
    gate, up = drawn(rows, width, seed=seed, factor=factor), drawn(rows, width, seed=seed + 1)
    wanted = F.silu(gate.double()) * up.double()
    with cpu.use_instruction_set(build):
        got = silu_mul(gate, up)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-34)  # e^-87 below -87


@pytest.mark.parametrize("build", BUILDS)
@given(rows=COUNTS, heads=st.integers(1, 5), half=st.sampled_from([1, 3, 32, 40]), seed=st.integers(0, 99))
def test_rotary_is_that_of_float64(build, rows, heads, half, seed):
    x, angles = drawn(1, rows, heads, 2 * half, seed=seed), drawn(1, rows, 2 * half, seed=seed + 1, factor=9.0)
    cos, sin = angles.cos(), angles.sin()
    wanted, _ = apply_rotary_pos_emb(*[x.double().transpose(1, 2)] * 2, cos.double(), sin.double())
    with cpu.use_instruction_set(build):
        got = rotary(x, cos, sin)
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-7 * float(x.abs().max()))


def gradients(function, inputs, out_grad):
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, out_grad)


def assert_near(got, exact, sizes):
    """Assert that gradients are those of float64 to the rounding of their dtype, by the sizes of terms."""
    for ours, wanted, size in zip(got, exact, sizes, strict=True):
        epsilon = 4e-6 if ours.dtype == torch.float32 else 2**-7
        assert ours.shape == wanted.shape
        assert bool(((ours.double() - wanted).abs() <= epsilon * size).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", BUILDS)
@given(rows=COUNTS, width=st.sampled_from([1, 5, 576, 2050]), factor=FACTORS, seed=st.integers(0, 99))
def test_rms_norm_gradients_are_those_of_float64(build, dtype, rows, width, factor, seed):
    shapes = ((2, rows, width), (width,), (2, rows, width))
    x, weight, out_grad = (drawn(*shape, seed=seed + k).to(dtype) for k, shape in enumerate(shapes))
    x = (factor * x.float()).to(dtype)
    exact = gradients(
        lambda x, weight: weight * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt(),
        (x.double(), weight.double()),
        out_grad.double(),
    )
    with cpu.use_instruction_set(build):
        got = gradients(lambda x, weight: rms_norm(x, weight, 1e-5), (x, weight), out_grad)
    factors = (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    of_x = factors * (out_grad * weight).double().abs().amax(-1, keepdim=True)
    assert_near(got, exact, (of_x, (out_grad * x * factors).abs().sum((0, 1))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", BUILDS)
@given(rows=COUNTS, width=st.sampled_from([1, 5, 1536]), factor=FACTORS, seed=st.integers(0, 99))
def test_silu_mul_gradients_are_those_of_float64(build, dtype, rows, width, factor, seed):
    gate, up, out_grad = (drawn(rows, width, seed=seed + k).to(dtype) for k in range(3))
    gate = (factor * gate.float()).to(dtype)
    exact = gradients(lambda s, up: F.silu(s) * up, (gate.double(), up.double()), out_grad.double())
    with cpu.use_instruction_set(build):
        got = gradients(silu_mul, (gate, up), out_grad)
    assert_near(got, exact, ((out_grad * up).double().abs(), (out_grad * gate).double().abs()))


@pytest.mark.parametrize(("dtype", "angles"), [*((dtype, dtype) for dtype in DTYPES), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("build", BUILDS)
@given(rows=COUNTS, heads=st.integers(1, 5), half=st.sampled_from([1, 3, 32]), seed=st.integers(0, 99))
def test_rotary_gradients_are_those_of_float64(build, dtype, angles, rows, heads, half, seed):
    x, out_grad = drawn(1, rows, heads, 2 * half, seed=seed), drawn(1, heads, rows, 2 * half, seed=seed + 1)
    x, out_grad = x.to(dtype), out_grad.to(dtype)
    turned = drawn(1, rows, 2 * half, seed=seed + 2, factor=9.0)
    cos, sin = turned.cos().to(angles), turned.sin().to(angles)

    def exact(x):
        return apply_rotary_pos_emb(*[x.transpose(1, 2)] * 2, cos.double(), sin.double())[0]

    with cpu.use_instruction_set(build):
        got = gradients(lambda x: rotary(x, cos, sin), (x,), out_grad)
    assert_near(got, gradients(exact, (x.double(),), out_grad.double()), (out_grad.abs().max(),))


def test_a_weight_that_is_frozen_has_no_gradient():
    x, weight = drawn(3, 8, seed=1).requires_grad_(), drawn(8, seed=2)
    rms_norm(x, weight, 1e-5).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("build", BUILDS)
def test_bfloat16_is_rounded_where_transformers_rounds(build):
    norm = LlamaRMSNorm(300, eps=1e-5).bfloat16()
    norm.weight.data = drawn(300, seed=1).bfloat16()
    x = drawn(50, 300, seed=2).bfloat16()
    gate, up = drawn(50, 300, seed=3, factor=4.0).bfloat16(), drawn(50, 300, seed=4).bfloat16()
    heads, angles = drawn(1, 50, 6, 50, seed=5).bfloat16(), drawn(1, 50, 50, seed=6)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    product = F.silu(gate) * up
    with cpu.use_instruction_set(build), torch.no_grad():
        assert torch.equal(rms_norm(x, norm.weight, 1e-5), norm(x))
        assert torch.equal(rotary(heads, cos, sin), apply_rotary_pos_emb(*[heads.transpose(1, 2)] * 2, cos, sin)[0])
        assert torch.equal(silu_mul(gate, up), product)
        turned = apply_rotary_pos_emb(*[heads.transpose(1, 2)] * 2, cos.float(), sin.float())[0]
        assert torch.equal(rotary(heads, cos.float(), sin.float()), turned.bfloat16())  # as under autocast


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others_or_the_threads(dtype):
    x, weight, gate = drawn(64, 577, seed=1).to(dtype), drawn(577, seed=2).to(dtype), drawn(64, 577, seed=3).to(dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        norms, products = rms_norm(x, weight, 1e-6), silu_mul(gate, x)
        torch.set_num_threads(3)
        assert torch.equal(rms_norm(x, weight, 1e-6), norms)
        assert torch.equal(silu_mul(gate, x), products)
        assert torch.equal(rms_norm(x[40:41], weight, 1e-6), norms[40:41])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_do_not_depend_on_the_threads(dtype):
    x, weight = drawn(200, 577, seed=1).to(dtype), drawn(577, seed=2).to(dtype)
    out_grad = drawn(200, 577, seed=3).to(dtype)
    threads, seen = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            norm = gradients(lambda x, weight: rms_norm(x, weight, 1e-6), (x, weight), out_grad)
            seen.append([*norm, *gradients(silu_mul, (x, out_grad), out_grad)])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *seen))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so_in_its_row(build, dtype):
    ones = torch.ones(3, 40, dtype=dtype)
    x = ones.clone()
    x[1, 7] = torch.nan
    with cpu.use_instruction_set(build):
        assert rms_norm(x, ones[0], 1e-6).isnan().all(1).tolist() == [False, True, False]
        assert rms_norm(0 * ones, ones[0], 1e-6).eq(0).all()
        gate = ones.clone()
        gate[0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -200.0])
        got = silu_mul(gate, ones)[0, :4]
    assert [got[0].isnan(), got[1] == torch.inf, got[2].isfinite(), abs(got[3]) < 1e-30] == [True, True, False, True]


def test_what_the_kernels_take():
    x = torch.ones(3, 4)
    assert layers.fits(x, x)
    assert layers.fits(torch.nn.Parameter(x).bfloat16())
    for unfit in ((x, x.bfloat16()), (x.T,), (x.double(),), (x.to("meta"),)):
        assert not layers.fits(*unfit)
    with pytest.raises(ValueError, match=r"^weight: expected shape \[4\], got \[3\]"):
        rms_norm(x, x[:, 0], 1e-6)
    with pytest.raises(ValueError, match=r"contiguous torch\.float32 tensor on cpu"):
        rms_norm(x, x[0].double(), 1e-6)
    with pytest.raises(ValueError, match=r"^up: expected shape \[3, 4\], got \[3, 3\]"):
        silu_mul(x, x[:, :3])
    for shape in ((2, 3, 1, 4), (1, 3, 1, 5), (1, 4, 1, 4)):
        with pytest.raises(ValueError, match=r"^cos: expected shape \[1, T, d\]"):
            rotary(torch.ones(shape), x[None], x[None])
    with pytest.raises(ValueError, match=r"^cos, sin: expected dtype torch\.float32"):
        rotary(torch.ones(1, 3, 1, 4), x[None].bfloat16(), x[None].bfloat16())


def test_no_rows():
    empty = torch.ones(0, 4)
    assert rms_norm(empty, torch.ones(4), 1e-6).shape == silu_mul(empty, empty).shape == (0, 4)
    assert rotary(torch.ones(1, 0, 2, 4), empty[None], empty[None]).shape == (1, 2, 0, 4)
