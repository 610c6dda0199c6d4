"""pick_device, pick_dtype, accumulator_dtype: the device that a user names, and dtypes for it."""

from __future__ import annotations

import functools
import logging

import torch

from main_kernels.processor import has_fast_bfloat16

from ..errors import UserError

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SLOW_BFLOAT16 = (
    "this CPU has no bfloat16 instructions, so torch multiplies bfloat16 seven to sixty times slower than float32: "
    "float32 is faster and more exact here (--dtype float32 or auto, bf16=False)"
)


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for sums that are logged: float64, or float32 on devices without it."""
    return torch.float32 if device.type == "mps" else torch.float64


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA if available, else the CPU.

    Raises:
        UserError: tensors cannot be put on that device; the message lists the devices of this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type != "meta":  # it computes nothing
            torch.zeros(1, dtype=torch.float32, device=device).cpu()
            return device
        why = "it stores no numbers"
    except Exception as error:  # every kind of device has its own error for a missing device
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(f"device {name!r} cannot be used here ({why}): this machine has {', '.join(_devices())}")


def _devices() -> list[str]:
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called `name`; "auto" is bfloat16 if the device has instructions for it, else float32.

    Raises:
        UserError: no such dtype.
    """
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise UserError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def has_bfloat16(device: torch.device) -> bool:
    """Return True if bfloat16 is the faster dtype on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and has_fast_bfloat16()


def warn_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Warn once if bfloat16 is used on a CPU without instructions for it."""
    if dtype == torch.bfloat16 and device.type == "cpu" and not has_fast_bfloat16():
        _warn(SLOW_BFLOAT16)


@functools.cache
def _warn(text: str) -> None:
    log.warning(text)
