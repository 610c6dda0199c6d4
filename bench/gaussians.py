"""Gaussians: pairs of known mutual information, with their optimal critic.

x and y are standard normal in d dimensions with correlation ρ per dimension. Their mutual information is
I = -(d/2) ln(1 - ρ²), and the best critic, the log density ratio ln p(y|x) / p(y), is an inner product of embeddings of
d + 2 dimensions. Estimators can therefore be compared with the truth without any training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """Correlated Gaussians with `information` nats of mutual information in `dimensions` dimensions per side."""

    information: float  # I, nats
    dimensions: int = 4

    @property
    def rho2(self) -> float:
        """Return ρ², the squared correlation per dimension."""
        return -math.expm1(-2 * self.information / self.dimensions)

    def draw(self, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample x and y, float64[pairs, d]."""
        x, noise = (torch.randn(pairs, self.dimensions, generator=generator, dtype=torch.float64) for _ in range(2))
        return x, math.sqrt(self.rho2) * x + math.sqrt(1 - self.rho2) * noise

    def critic(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return query and key, both [N, d + 2], with query_i·key_j = ln p(y_j|x_i) / p(y_j)."""
        slope = 1 / (2 * (1 - self.rho2))
        one = torch.ones_like(x[:, :1])
        own_x, own_y = (-self.rho2 * slope * t.square().sum(1, keepdim=True) for t in (x, y))
        query = torch.cat([2 * math.sqrt(self.rho2) * slope * x, own_x + self.information, one], 1)
        return query, torch.cat([y, one, own_y], 1)

    def pairs(self, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample pairs and return their embeddings, float32[pairs, d + 2]."""
        query, key = self.critic(*self.draw(pairs, generator))
        return query.float(), key.float()

    def plus_one(self, query: Tensor) -> Tensor:
        """Return the query of the critic 1 + ln p(y|x) / p(y), the optimal critic of NWJ."""
        query = query.clone()
        query[:, self.dimensions] += 1  # multiplied by the column of ones in key
        return query
