"""The launch path without a GPU: Triton's own runtime (arguments packed, tensor maps encoded, kernels launched) over a
stand-in for libcuda.so.1 (driver.c) that refuses what CUDA's documentation forbids. Kernels are compiled, none runs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import triton

from bench import aot
from main_kernels import backends, info_nce, linear_cross_entropy, linear_kl, pair_scores, sigmoid_loss
from main_kernels.backends import registry
from main_kernels.backends.triton import TritonBackend, configs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia"
ROWS, COLUMNS, WIDTH = 520, 1100, 72  # tiles are ragged, and rows need padding

TARGETS, IDS, SCALE = torch.arange(ROWS), torch.arange(ROWS) // 2, torch.tensor(1.0, requires_grad=True)
LAUNCHED_CALLS = {
    "info_nce": lambda h, w: info_nce(h, w[:ROWS], workspace_bytes=0),
    "info_nce_kept_ids": lambda h, w: info_nce(h, w[:ROWS], pair_ids=IDS, label_smoothing=0.1, logit_scale=SCALE),
    "sigmoid_loss": lambda h, w: sigmoid_loss(h, w[:ROWS], logit_scale=SCALE, logit_bias=-SCALE, workspace_bytes=0),
    "linear_cross_entropy": lambda h, w: linear_cross_entropy(h, w, TARGETS, softcap=5.0, bias=torch.zeros(COLUMNS)),
    "linear_kl": lambda h, w: linear_kl(h, w, h.detach(), w.detach(), divergence="js"),
    "pair_scores": lambda h, w: pair_scores(h, w[:ROWS]).pmi.sum(),
}


FUSED = ("info_nce", "sigmoid_loss", "pair_scores")  # they keep no scores


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """Load a libcuda.so.1 that notes calls, once in a process: Triton's launchers stay with the first they find."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc to compile the stand-in with")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{NVIDIA / 'include'}"]
    subprocess.run([compiler, *flags, Path(__file__).with_name("driver.c"), "-o", library], check=True)
    loaded = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # later loads of libcuda.so.1 return this one
    loaded.noted.restype = ctypes.c_char_p
    return folder, loaded


@pytest.fixture(scope="module")
def pretended(stand_in):
    """A device of compute capability 9.0 for tensors of the CPU. Gives the function that tells what it was asked."""
    folder, loaded = stand_in
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_LIBCUDA_PATH", str(folder))
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        from triton.backends.nvidia.driver import CudaDriver

        pretender = CudaDriver()
        for name, answer in (("get_current_device", 0), ("get_current_stream", 0), ("get_device_capability", (9, 0))):
            setattr(pretender, name, lambda *_, answer=answer: answer)
        patch.setattr(triton.runtime.driver, "_active", pretender)
        patch.setattr(configs, "architecture", lambda _: 90)
        patch.setattr(configs, "multiprocessors", lambda _: 132)
        patch.setitem(registry.BACKENDS, "triton", TritonBackend())
        yield lambda: [line.split() for line in loaded.noted().decode().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAUNCHED_CALLS)
def test_a_driver_accepts_every_launch(pretended, name, dtype):
    hidden, weight = (torch.randn(n, WIDTH).to(dtype).requires_grad_() for n in (ROWS, COLUMNS))
    pretended()
    with backends.use_backend("triton"):
        torch.autograd.grad(LAUNCHED_CALLS[name](hidden, weight), (hidden, weight))
    notes = pretended()
    asked = Counter(what for what, _ in notes)
    if name == "linear_kl":
        assert asked["divergence"] == 1
    elif dtype == torch.float32 or name not in FUSED:
        assert asked["reduce_rows"] == asked["score_grad"] == 1
    else:
        assert asked["target_scores"] == asked["fused_reduce"] + asked["two_sided_reduce"] == 1
        assert asked["exact_columns"] == asked["two_sided_reduce"]
        assert asked["map"] == 2 * sum(asked[walk] for walk in aot.WALKS)
        assert all(int(grid) <= 2 * 132 for what, grid in notes if what in aot.WALKS)


def test_the_stand_in_driver_refuses_what_cuda_refuses(pretended):
    encode = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    room = (ctypes.c_char * 192)()
    at, sizes, steps = -(-ctypes.addressof(room) // 64) * 64, (ctypes.c_uint64 * 2)(80, 520), (ctypes.c_uint * 2)(1, 1)

    def accepted(address=1 << 20, stride=160, box=(64, 128), swizzle=3):
        strides, boxes = (ctypes.c_uint64 * 1)(stride), (ctypes.c_uint * 2)(*box)
        given = 9, 2, ctypes.c_void_p(address), sizes, strides, boxes, steps, 0, swizzle, 2, 0  # 9: bfloat16
        return encode(ctypes.c_void_p(at), *given) == 0

    assert accepted()
    wrong = {"address": 8}, {"stride": 168}, {"stride": 144}, {"box": (64, 512)}, {"box": (128, 64)}, {"swizzle": 2}
    assert not any(accepted(**each) for each in wrong)
