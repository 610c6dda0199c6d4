"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

from main_kernels import backends
from main_kernels.sweep import plan

from .kernels.contract import BUILDS, DEVICE

settings.register_profile(
    "quick",
    max_examples=40 if DEVICE == "cpu" else 15,  # for a GPU, new combinations of arguments are compiled first
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BUILDS, ids=[build or name for name, build in BUILDS])
def backend(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """Runs the test once on every backend of this machine, and on every build of the C++ kernels that it can run."""
    name, build = request.param
    with backends.use(name, build):
        yield name


@pytest.fixture(params=[True, False], ids=["bfloat16_products", "float32_products"])
def fast_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Runs the test as on a CPU with bfloat16 instructions and as on one without, whichever this one is."""
    monkeypatch.setattr(plan, "has_fast_bfloat16", lambda: request.param)
    return bool(request.param)
