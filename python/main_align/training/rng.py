"""Random generators put back, so that a second forward drops out what the first did."""

from __future__ import annotations

from typing import Any

import torch


def generator_states(device: torch.device) -> dict[str, Any]:
    """The state of torch's generators on the CPU and on the device."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
