"""Bank, BankScores: semantic and structural scores of any number of pairs against M reference pairs.

The cost is pairs x bank, and no matrix of either size is stored: the semantic score needs the log-sum-exps of rows, the
structural score three D x D matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from main_kernels import row_logsumexp

Floats32 = NDArray[np.float32]


class BankScores(NamedTuple):
    """The scores of n pairs against the bank, float64[n] each; the fields are columns of `columns.COLUMNS`."""

    semantic: NDArray[np.float64]
    structural: NDArray[np.float64]


class Bank:
    """M reference pairs, centred by each side's mean and scaled to unit length.

    Args:
        embed_x: float32[M, D], pooled states of the instructions.
        embed_y: float32[M, D], pooled states of the responses.
        temperature: tau of S = Q K^T / tau.
        device: device of the matrix products. Default "cpu".
        centred: subtract each side's mean. False for trained projections, which are compared as they are. Default True.

    Raises:
        ValueError: shapes that differ or no pairs.
    """

    def __init__(
        self,
        embed_x: Floats32,
        embed_y: Floats32,
        temperature: float,
        device: torch.device | str = "cpu",
        *,
        centred: bool = True,
    ) -> None:
        if embed_x.ndim != 2 or embed_x.shape != embed_y.shape or not len(embed_x):
            raise ValueError(
                f"embed_x and embed_y must both be [M, D] with M >= 1, got {embed_x.shape} and {embed_y.shape}"
            )
        self.temperature = temperature
        self.device = torch.device(device)
        x, y = self._tensor(embed_x), self._tensor(embed_y)
        self._mean_x, self._mean_y = (side.mean(0) if centred else torch.zeros_like(side[0]) for side in (x, y))
        self.query, self.key = self._unit(x, self._mean_x), self._unit(y, self._mean_y)  # [M, D]
        plus, minus = _plus_minus(self.query, self.key)
        self._a, self._b, self._c = plus.T @ plus, minus.T @ minus, minus.T @ plus  # [D, D]

    @staticmethod
    def choose(n_scored: int, size: int, seed: int) -> NDArray[np.int64]:
        """Return the positions of the pairs that form the bank, int64, ascending.

        Args:
            n_scored: number of scored pairs.
            size: largest size of the bank. All pairs are taken if there are no more.
            seed: random seed of the sample.

        Raises:
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"the bank's size must be at least 1, got {size}")
        if n_scored <= size:
            return np.arange(n_scored, dtype=np.int64)
        sample = np.random.default_rng(seed).choice(n_scored, size, replace=False)
        return np.sort(sample).astype(np.int64)

    def score(self, embed_x: Floats32, embed_y: Floats32, member: NDArray[np.int64]) -> BankScores:
        """Score n pairs against the bank.

        A pair outside the bank joins its own partition (N = M + 1), so its score is comparable with a member's:

            semantic = log N + S_ii - (logsumexp_j S_ij + logsumexp_j S_ji) / 2
            structural = -sum_j (q_i.q_j - k_i.k_j)^2 / N

        Args:
            embed_x: float32[n, D], pooled states of the instructions.
            embed_y: float32[n, D], pooled states of the responses.
            member: int64[n], the pair's position in the bank, or -1.

        Returns:
            float64[n] for each score.
        """
        query = self._unit(self._tensor(embed_x), self._mean_x)  # [n, D]
        key = self._unit(self._tensor(embed_y), self._mean_y)
        outside = torch.as_tensor(member, device=self.device) < 0
        partition = len(self.query) + outside.double()  # N of each pair
        own = (query.double() * key.double()).sum(1) / self.temperature  # S_ii
        row, column = (
            row_logsumexp(a, b, temperature=self.temperature).double()
            for a, b in ((query, self.key), (key, self.query))
        )
        row, column = (torch.where(outside, torch.logaddexp(r, own), r) for r in (row, column))
        semantic = partition.log() + own - (row + column) / 2
        structural = -self._consistency(query, key) / partition
        return BankScores(semantic.cpu().numpy(), structural.cpu().numpy())

    def _consistency(self, query: Tensor, key: Tensor) -> Tensor:
        """Return sum_j (q_i.q_j - k_i.k_j)^2 over the bank, float64[n].

        With P = Q+K, M = Q-K, A = P'P, B = M'M, C = M'P it equals (p'Bp + m'Am + 2 p'Cm) / 4: O(D^2) per pair, and
        no cancellation if Q is near K. A pair's own term is (1 - 1)^2 = 0, so a pair outside the bank adds nothing.
        """
        plus, minus = _plus_minus(query, key)
        terms = (plus @ self._b) * plus + (minus @ self._a) * minus + 2 * (plus @ self._c) * minus
        return terms.sum(1).clamp_min(0) / 4

    def _tensor(self, values: Floats32) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), device=self.device)

    @staticmethod
    def _unit(states: Tensor, mean: Tensor) -> Tensor:
        return torch.nn.functional.normalize(states - mean, dim=1)


def _plus_minus(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    query, key = query.double(), key.double()
    return query + key, query - key
