"""Ground truth for mutual information that nobody here wrote: correlated Gaussians with their optimal critic.

x and y are standard normal in d dimensions with correlation ρ per dimension. Their mutual information is
I = -(d/2) ln(1 - ρ²), and the best critic, the log density ratio ln p(y|x) / p(y), is an inner product of embeddings of
d + 2 dimensions: the estimators can be held against the truth without training anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    information: float  # I, nats
    dimensions: int = 4

    @property
    def rho2(self) -> float:
        """ρ², from I."""
        return -math.expm1(-2 * self.information / self.dimensions)

    def draw(self, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x[pairs, d] and y[pairs, d], float64."""
        x, noise = (torch.randn(pairs, self.dimensions, generator=generator, dtype=torch.float64) for _ in range(2))
        return x, math.sqrt(self.rho2) * x + math.sqrt(1 - self.rho2) * noise

    def critic(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """query[N, d + 2] and key[N, d + 2] with query_i·key_j = ln p(y_j|x_i) / p(y_j)."""
        slope = 1 / (2 * (1 - self.rho2))
        one = torch.ones_like(x[:, :1])
        own_x, own_y = (-self.rho2 * slope * t.square().sum(1, keepdim=True) for t in (x, y))
        query = torch.cat([2 * math.sqrt(self.rho2) * slope * x, own_x + self.information, one], 1)
        return query, torch.cat([y, one, own_y], 1)

    def pairs(self, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Embeddings of freshly drawn pairs, float32."""
        query, key = self.critic(*self.draw(pairs, generator))
        return query.float(), key.float()

    def plus_one(self, query: Tensor) -> Tensor:
        """``query`` of the critic 1 + ln p(y|x) / p(y), which is the best for NWJ."""
        query = query.clone()
        query[:, self.dimensions] += 1  # meets the ones of key
        return query
