"""Meter: weighted means between two log lines, summed on the device and read once per log line."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.devices import accumulator_dtype
from ..distributed import sum_over_processes


class Meter:
    """Weighted means of scalars over steps and processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> [sum, weight]

    def add(self, name: str, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add a sum and its weight; the mean is sum / weight, for example nats and tokens."""
        dtype = accumulator_dtype(value.device)
        pair = torch.stack([value.detach().to(dtype), torch.as_tensor(weight, device=value.device).to(dtype)])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self) -> dict[str, float]:
        """Return the means in the order of the first `add`, without those of weight 0, and reset.

        Every process must have added the same names.
        """
        if not self._sums:
            return {}
        total, weight = sum_over_processes(torch.stack(list(self._sums.values()))).unbind(1)
        means = torch.where(weight > 0, total / weight, torch.nan).tolist()
        names, self._sums = list(self._sums), {}
        return {name: mean for name, mean in zip(names, means, strict=True) if mean == mean}
