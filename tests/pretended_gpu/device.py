"""pretend, is_pretended, waits: load the pretended GPU into this process, before anything imports torch."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

from .build import built

_loaded: list[ctypes.CDLL] = []


def pretend() -> None:
    """Make torch believe in a GPU. Lasts as long as the process."""
    assert "torch" not in sys.modules, "torch looks for its devices when it is imported"
    library = ctypes.CDLL(str(built()), ctypes.RTLD_GLOBAL)
    library.read_waits.restype = ctypes.c_char_p
    _loaded.append(library)

    import torch

    from . import operations

    operations.register()
    _answer_as_a_gpu(torch)
    torch.serialization.register_package(5, _tag, _put_back)


def is_pretended() -> bool:
    """Return True in a process with a pretended GPU."""
    return bool(_loaded)


def waits() -> dict[str, int]:
    """Return what the host has waited for since the last call, and how often."""
    lines = (line.split("\t") for line in _loaded[0].read_waits().decode().splitlines())
    return {what: int(count) for what, count in lines}


def _answer_as_a_gpu(torch: Any) -> None:
    """A torch without CUDA has no functions to ask a device with."""
    properties = SimpleNamespace(
        name="pretended GPU", multi_processor_count=132, total_memory=80 << 30, major=7, minor=5, warp_size=32
    )
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": properties.name,
        "get_device_capability": (properties.major, properties.minor),
        "get_device_properties": properties,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_reserved": 0,
        "mem_get_info": (properties.total_memory, properties.total_memory),
        "_lazy_init": None,
        "_is_in_bad_fork": False,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "ipc_collect": None,
        "reset_peak_memory_stats": None,
        "current_stream": SimpleNamespace(cuda_stream=0),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch._C._cuda_getDevice = lambda: 0
    random = {  # operations draw from the CPU's generator
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
        "manual_seed": lambda _: None,
        "manual_seed_all": lambda _: None,
    }
    for name, function in random.items():
        setattr(torch.cuda, name, function)
        setattr(torch.cuda.random, name, function)


def _tag(storage: Any) -> str | None:
    return "cuda:0" if storage.device.type == "cuda" else None


def _put_back(storage: Any, location: str) -> Any:
    """Load a storage that torch.save has written: torch would ask CUDA's allocator."""
    import torch

    if not location.startswith("cuda"):
        return None
    whole = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    return whole.to("cuda").untyped_storage()
