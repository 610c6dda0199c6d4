"""Bank, BankScores, PairStates: semantic and structural scores of any number of pairs against M reference pairs.

The cost is pairs x bank. Scores are computed in blocks of rows, so no matrix of pairs x bank is stored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Floats32 = NDArray[np.float32]

BLOCK_SCORES = 1 << 22
"""largest number of scores in one block"""


class BankScores(NamedTuple):
    """The scores of n pairs against the bank, float64[n] each; the fields are columns of `columns.COLUMNS`."""

    semantic: NDArray[np.float64]
    structural: NDArray[np.float64]


class PairStates(NamedTuple):
    """Embeddings and texts of n pairs.

    Attributes:
        embed_x: float32[n, D], pooled states of the instructions.
        embed_y: float32[n, D], pooled states of the responses.
        text_x: int64[n], equal for instructions with equal token ids.
        text_y: int64[n], equal for responses with equal token ids.
    """

    embed_x: Floats32
    embed_y: Floats32
    text_x: NDArray[np.int64]
    text_y: NDArray[np.int64]


class Bank:
    """M reference pairs, standardised per side and dimension and scaled to unit length.

    A few dominant dimensions of a language model's states hide the others. Dividing each dimension by its standard
    deviation over the bank removes them (docs/quality.md has the measurement).

    Args:
        pairs: the M reference pairs.
        temperature: tau of S = Q K^T / tau.
        device: device of the matrix products. Default "cpu".
        standardised: subtract each dimension's mean and divide by its standard deviation. False for trained
            projections, which are compared as they are. Default True.

    Raises:
        ValueError: shapes that differ or no pairs.
    """

    def __init__(
        self,
        pairs: PairStates,
        temperature: float,
        device: torch.device | str = "cpu",
        *,
        standardised: bool = True,
    ) -> None:
        shape = pairs.embed_x.shape
        if len(shape) != 2 or shape != pairs.embed_y.shape or not len(pairs.embed_x):
            both = f"{shape} and {pairs.embed_y.shape}"
            raise ValueError(f"embed_x and embed_y must both be [M, D] with M >= 1, got {both}")
        self.temperature = temperature
        self.device = torch.device(device)
        sides = [self._tensor(side) for side in (pairs.embed_x, pairs.embed_y)]
        self._moments = [_moments(side) if standardised else None for side in sides]
        self.query, self.key = (_unit(side, moments) for side, moments in zip(sides, self._moments, strict=True))
        self._text_x, self._text_y = self._tensor(pairs.text_x), self._tensor(pairs.text_y)

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

    def score(self, pairs: PairStates) -> BankScores:
        """Score n pairs, members of the bank or not.

        Pair i is compared with itself and with the pairs j of the bank that share neither text with it: equal
        instructions are no evidence against a response. With N - 1 such pairs,

            semantic = log N + S_ii - (logsumexp_j S_ij + logsumexp_j S_ji) / 2    (j over these pairs and i)
            structural = correlation over j of q_i.q_j with k_i.k_j                (j over these pairs)

        Args:
            pairs: the n pairs.

        Returns:
            float64[n] for each score. `structural` is NaN if it has fewer than two pairs j to compare with.
        """
        x, y = self._tensor(pairs.embed_x), self._tensor(pairs.embed_y)
        query, key = (_unit(side, moments) for side, moments in zip((x, y), self._moments, strict=True))
        texts = self._tensor(pairs.text_x), self._tensor(pairs.text_y)
        rows = max(1, BLOCK_SCORES // len(self.query))
        blocks = zip(*(tensor.split(rows) for tensor in (query, key, *texts)), strict=True)
        scores = [torch.stack(self._score_block(*block)) for block in blocks]
        semantic, structural = torch.cat(scores, 1).cpu().numpy() if scores else np.zeros((2, 0))
        return BankScores(semantic, structural)

    def _score_block(self, query: Tensor, key: Tensor, text_x: Tensor, text_y: Tensor) -> tuple[Tensor, Tensor]:
        negative = (text_x[:, None] != self._text_x) & (text_y[:, None] != self._text_y)  # [n, M]
        count = negative.sum(1).double()
        own = (query.double() * key.double()).sum(1) / self.temperature  # S_ii
        row, column = (
            torch.logaddexp((a @ b.T / self.temperature).masked_fill_(~negative, -torch.inf).logsumexp(1).double(), own)
            for a, b in ((query, self.key), (key, self.query))
        )
        semantic = (count + 1).log() + own - (row + column) / 2
        among_x, among_y = (
            _centred(a @ b.T, negative, count) for a, b in ((query, self.query), (key, self.key))
        )  # [n, M], 0 where not negative
        variances = among_x.square().sum(1, dtype=torch.float64) * among_y.square().sum(1, dtype=torch.float64)
        structural = (among_x * among_y).sum(1, dtype=torch.float64) / variances.sqrt()
        return semantic, torch.where(count >= 2, structural, torch.nan)

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), device=self.device)


def _moments(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each dimension, the latter 1 where a dimension is constant."""
    deviation = states.std(0, correction=0)
    return states.mean(0), deviation.where(deviation > 0, 1.0)


def _unit(states: Tensor, moments: tuple[Tensor, Tensor] | None) -> Tensor:
    return F.normalize(states if moments is None else (states - moments[0]) / moments[1], dim=1)


def _centred(values: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Return the valid values [n, M] minus the mean of each row's valid values, 0 for the others."""
    mean = values.where(valid, 0.0).sum(1, dtype=torch.float64) / count
    return (values - mean[:, None].to(values.dtype)).where(valid, 0.0)
