"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from main_kernels import backends
from main_kernels.sweep import plan

from .kernels.contract import BUILDS, DEVICE

# TRL's telemetry looks a host up in a thread, which crashes while a test changes the environment.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
gc.disable()  # until all tests are collected: the modules that they import leave little to free
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # processes that share the cores wait for each other with more threads than this
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the programs that tests start

settings.register_profile(
    "quick",
    max_examples=40 if DEVICE == "cpu" else 15,  # for a GPU, new combinations of arguments are compiled first
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no process is left with one of them at the end. Tests marked one_build run
    on the best build of the C++ kernels alone, those marked one_backend on no other backend. float32 inputs run once:
    their products are float32 on every CPU."""
    others = [build for place, build in enumerate(BUILDS) if build[0] in {name for name, _ in BUILDS[:place]}]
    left_out = {"one_build": others, "one_backend": BUILDS[1:]}

    def is_left_out(item: pytest.Item) -> bool:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        repeated = params.get("dtype") == torch.float32 and params.get("fast_bfloat16") is False
        return repeated or any(mark in item.keywords and params.get("backend") in left_out[mark] for mark in left_out)

    items[:] = sorted(
        (item for item in items if not is_left_out(item)), key=lambda item: "longest" not in item.keywords
    )


def pytest_collection_finish() -> None:
    """Leave the modules out of the full garbage collections of a trainer: each takes a second."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter free them at its end: Triton's bindings report what it does not."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BUILDS, ids=[build or name for name, build in BUILDS])
def backend(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """Runs the test once on every backend of this machine, and on every build of the C++ kernels that it can run."""
    name, build = request.param
    with backends.use_backend(name, build):
        yield name


@pytest.fixture(params=[True, False], ids=["bfloat16_products", "float32_products"])
def fast_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Runs the test as on a CPU with bfloat16 instructions and as on one without, whichever this one is."""
    monkeypatch.setattr(plan, "has_fast_bfloat16", lambda: request.param)
    return bool(request.param)
