"""Torch's default dtype and default device change nothing: not a bit of a result, and no byte past a buffer's end."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import main_kernels
from main_kernels import backends
from main_kernels.backends import cpu
from main_kernels.backends.structs import Pooling

from .calls import PUBLIC, function_of, values_and_gradients
from .contract import BACKENDS

ROOT = Path(__file__).parents[2]
FACTORIES = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "randint", "randperm", "tensor"}
FACTORIES |= {"zeros", "scalar_tensor", "empty_strided"}
SOURCES = [path for package in ("main_kernels", "python/main_align") for path in (ROOT / package).rglob("*.py")]


def test_every_public_function_is_in_the_list():
    functions = {name for name in main_kernels.__all__ if name[0].islower() and name != "backend_report"}
    assert {function_of(name) for name in PUBLIC} == functions


@pytest.fixture
def restored():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_default_dtype_and_device_do_not_change_a_bit(restored, name, dtype):
    query, key = (torch.randn(40, 24).to(dtype).requires_grad_() for _ in range(2))

    def same(got, want) -> bool:
        if got is None or want is None:
            return got is want
        return (
            got.dtype == want.dtype and got.device == want.device and torch.equal(got.nan_to_num(), want.nan_to_num())
        )

    for backend in BACKENDS:
        with backends.use_backend(backend):
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
            want = values_and_gradients(PUBLIC[name], query, key)
            for default in (torch.float64, torch.bfloat16, torch.float16):
                torch.set_default_dtype(default)
                assert all(map(same, values_and_gradients(PUBLIC[name], query, key), want)), default
            torch.set_default_dtype(torch.float32)
            torch.set_default_device("meta")
            assert all(map(same, values_and_gradients(PUBLIC[name], query, key), want))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_factory_names_dtype_and_device(path):
    """torch.empty(n) means what the user's defaults say; nothing here may depend on them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("torch."):
            continue
        name = ast.unparse(node.func).removeprefix("torch.")
        required = {"dtype", "device"} if name in FACTORIES else {"device"} if name == "as_tensor" else set()
        missing = required - {keyword.arg for keyword in node.keywords}
        assert not missing, f"line {node.lineno}: torch.{name} without {missing}"


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the compiled module")
def test_compiled_code_refuses_buffers_of_the_wrong_dtype_or_device():
    with pytest.raises(ValueError, match="expected a contiguous"):
        cpu.address(torch.zeros(3, dtype=torch.float64), torch.float32)
    with pytest.raises(ValueError, match="got a non-contiguous"):
        cpu.address(torch.zeros(3, 3).T, torch.float32)
    with pytest.raises(ValueError, match="on meta"):
        cpu.address(torch.zeros(3, device="meta"), torch.float32)
    backend, offsets = backends.get_backend("cpu"), torch.tensor([0, 3])
    hidden = torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"backend 'cpu': expected .*, got dtype"):
        backend.pool_forward(hidden, Pooling(offsets, False, True))
    with pytest.raises(ValueError, match="expected a contiguous"):
        backend.pool_forward(hidden.float(), Pooling(offsets.int(), False, True))
    with pytest.raises(ValueError, match=r"backend 'cpu': expected .*, got dtype"), backends.use_backend("cpu"):
        main_kernels.row_logsumexp(hidden, hidden)
