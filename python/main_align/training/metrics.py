"""Metrics between two log lines: summed on the device, read once a log line."""

from __future__ import annotations

import torch
from torch import Tensor

from .distributed import sum_over_processes


class Meter:
    """Weighted means of scalars, over steps and processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> [sum, weight]

    def add(self, name: str, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """`value` is a sum where its mean is sum / weight: e.g. nats of `weight` tokens."""
        both = torch.stack([value.detach().float(), torch.as_tensor(weight, device=value.device).float()])
        self._sums[name] = self._sums[name] + both if name in self._sums else both

    def read(self) -> dict[str, float]:
        """The means, in the order in which they were first added; starts anew. The same names on every process."""
        if not self._sums:
            return {}
        total, weight = sum_over_processes(torch.stack(list(self._sums.values()))).unbind(1)
        means = torch.where(weight > 0, total / weight, torch.nan).tolist()
        names, self._sums = list(self._sums), {}
        return {name: mean for name, mean in zip(names, means, strict=True) if mean == mean}
