"""Bank, BankScores, PairStates: semantic and structural scores of any number of pairs against M reference pairs.

The cost is pairs x bank. Scores are computed in blocks of rows, so no matrix of pairs x bank is stored. All blocks have
one shape: a matrix product of another shape sums in another order, and a pair's scores would depend on its neighbours.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.atomic import atomic_write
from ..errors import UserError
from ..models.host_copies import beside_queued_work
from .fingerprint import same_model, what_states_depend_on
from .manifest import differences

Floats32 = NDArray[np.float32]

BLOCK_ROWS = 64
"""pairs that are scored at a time"""
TENSORS = ("query", "key", "text_x", "text_y", "mean_x", "deviation_x", "mean_y", "deviation_y")
METADATA = "main_align_bank"


class BankScores(NamedTuple):
    """The scores of n pairs against the bank, float64[n] each; the fields are columns of `columns.COLUMNS`."""

    semantic: NDArray[np.float64]
    structural: NDArray[np.float64]

    @classmethod
    def empty(cls, n: int) -> BankScores:
        """Return those of n pairs that have no scores, NaN."""
        return cls(np.full(n, np.nan), np.full(n, np.nan))


class MeasuredPairs(Protocol):
    """Interface of `measured.Measured`, of which a bank is made.

    Attributes:
        fingerprint: `Scorer.fingerprint` of the scorer.
    """

    fingerprint: dict[str, Any]

    def __len__(self) -> int: ...

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """bool[n], True for the pairs that have scores."""

    def states(self, pairs: NDArray[Any]) -> PairStates: ...


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

        bank = Bank.of(scorer.measure(reference_pairs))
        bank.save("bank.safetensors")
        rows = scorer.score(pairs, bank=Bank.load("bank.safetensors"))

    Args:
        pairs: the M reference pairs.
        temperature: tau of S = Q K^T / tau.
        device: device of the matrix products. Default "cpu".
        standardised: subtract each dimension's mean and divide by its standard deviation. False for trained
            projections, which are compared as they are. Default True.
        fingerprint: `Scorer.fingerprint` of the scorer that made the states. Default: empty, a bank for any scorer.

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
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        shape = pairs.embed_x.shape
        if len(shape) != 2 or shape != pairs.embed_y.shape or not len(pairs.embed_x):
            both = f"{shape} and {pairs.embed_y.shape}"
            raise ValueError(f"embed_x and embed_y must both be [M, D] with M >= 1, got {both}")
        self.temperature, self.fingerprint = temperature, dict(fingerprint or {})
        x, y, text_x, text_y = (_tensor(array, device) for array in pairs)
        moments = [_moments(side, standardised) for side in (x, y)]
        query, key = (_unit(side, *of) for side, of in zip((x, y), moments, strict=True))
        self._set(query, key, text_x, text_y, *moments[0], *moments[1])

    def _set(self, *tensors: Tensor) -> None:
        self.query, self.key, self._text_x, self._text_y, *moments = tensors
        self._moments = [moments[:2], moments[2:]]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # `score` does not wait for what is queued

    def _tensors(self) -> list[Tensor]:
        return [self.query, self.key, self._text_x, self._text_y, *self._moments[0], *self._moments[1]]

    def __len__(self) -> int:
        """Return M."""
        return len(self.query)

    @property
    def device(self) -> torch.device:
        """Return the device of the matrix products."""
        return self.query.device

    def to(self, device: torch.device | str) -> Bank:
        """Move the bank to a device and return it.

        Args:
            device: a torch device.
        """
        self._set(*(tensor.to(device) for tensor in self._tensors()))
        return self

    @classmethod
    def of(cls, measured: MeasuredPairs, device: torch.device | str = "cpu") -> Bank:
        """Return the bank of measured pairs: as many as the scorer's `bank`, sampled with its `seed` if there are more.

        Args:
            measured: the result of `Scorer.measure`; the scorer's settings come with it.
            device: device of the matrix products. Default "cpu".

        Raises:
            UserError: none of the pairs could be scored.
        """
        settings = measured.fingerprint
        candidates = bank_candidates(len(measured), settings["bank"], settings["seed"])
        members = np.sort(candidates[measured.is_scored[candidates]][: settings["bank"]])
        if not len(members):
            raise UserError("a bank needs a pair that can be scored; measure other pairs")
        return cls.of_states(measured.states(members), settings, device)

    @classmethod
    def of_states(cls, pairs: PairStates, fingerprint: Mapping[str, Any], device: torch.device | str = "cpu") -> Bank:
        """Return the bank of these pairs, with a scorer's temperature. Trained projections are not standardised.

        Args:
            pairs: the M reference pairs.
            fingerprint: `Scorer.fingerprint` of the scorer that made their states.
            device: device of the matrix products. Default "cpu".
        """
        temperature, standardised = fingerprint["temperature"], "heads" not in fingerprint
        return cls(pairs, temperature, device, standardised=standardised, fingerprint=fingerprint)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bank to a .safetensors file, atomically, with the fingerprint of its scorer.

        Args:
            path: the file.
        """
        from safetensors.torch import save

        about = json.dumps({"temperature": self.temperature, "scorer": self.fingerprint}, sort_keys=True)
        tensors = {name: tensor.cpu() for name, tensor in zip(TENSORS, self._tensors(), strict=True)}
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(save(tensors, metadata={METADATA: about}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Bank:
        """Read a bank that `save` wrote; its scores are the same to the last bit.

        Args:
            path: the file.
            device: device of the matrix products. Default "cpu".

        Raises:
            UserError: the file does not exist, or holds no bank.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path), "pt", device=str(device)) as file:
                about = json.loads((file.metadata() or {})[METADATA])
                tensors = [file.get_tensor(name) for name in TENSORS]
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; give a bank that Bank.save or main-align score wrote") from None
        except (SafetensorError, KeyError, ValueError):
            raise UserError(f"{path} is damaged or holds no bank; write it again with Bank.save") from None
        bank = cls.__new__(cls)
        bank.temperature, bank.fingerprint = about["temperature"], about["scorer"]
        bank._set(*tensors)
        return bank

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse a scorer whose states cannot be compared with the bank's.

        Args:
            fingerprint: `Scorer.fingerprint` of the scorer.

        Raises:
            UserError: the model, its dtype, the chat template, the heads or the temperature differ; the message says
                how.
        """
        before, now = what_states_depend_on(self.fingerprint), what_states_depend_on(fingerprint)
        changed = differences(before, same_model(before, now)) if before else []
        if changed:
            raise UserError(
                f"the bank was made by another scorer: {'; '.join(changed)}. Use that scorer, or make a bank with this "
                "one: Bank.of(scorer.measure(pairs))"
            )

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
        n = len(pairs.embed_x)
        with beside_queued_work(self.device):
            blocks = [self._score_rows(pairs, start) for start in range(0, n, BLOCK_ROWS)]
            semantic, structural = torch.cat(blocks, 1).cpu().numpy()[:, :n] if blocks else np.zeros((2, 0))
        return BankScores(semantic, structural)

    def _score_rows(self, pairs: PairStates, start: int) -> Tensor:
        """Return the scores, float64[2, BLOCK_ROWS], of a block of pairs; the last block is filled with zeros."""
        block = [array[start : start + BLOCK_ROWS] for array in pairs]
        missing = BLOCK_ROWS - len(block[0])
        x, y, text_x, text_y = (
            _tensor(np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)), self.device) for array in block
        )
        query, key = (_unit(side, *moments) for side, moments in zip((x, y), self._moments, strict=True))
        return torch.stack(self._score_block(query, key, text_x, text_y))

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


def bank_candidates(n: int, size: int, seed: int) -> NDArray[np.int64]:
    """Choose the pairs that a bank is made of, before the model has run: those with the smallest hash of their number.

    Some pairs cannot be scored, so 5% more than needed are chosen, and at least 64 more; the first `size` of them that
    have scores form the bank.

    Args:
        n: number of pairs.
        size: largest size of the bank.
        seed: random seed of the hash.

    Returns:
        The numbers of the pairs, int64, in the order of their hash values.
    """
    count = min(n, size + max(64, size // 20))
    best, hashes = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    for start in range(0, n, HASHED_AT_A_TIME):
        rows = np.concatenate([best, np.arange(start, min(n, start + HASHED_AT_A_TIME))])
        hashes = _hash(rows, seed)
        best = rows[np.argpartition(hashes, count - 1)[:count]] if len(rows) > count else rows
    return best[np.argsort(_hash(best, seed))]


HASHED_AT_A_TIME = 1 << 20


def _hash(rows: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Return the splitmix64 hash of each number: for one seed, different numbers have different hashes."""
    start = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "little")
    value = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
    return value ^ (value >> np.uint64(31))


def _tensor(values: NDArray[np.generic], device: torch.device | str) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values), device=device)


def _moments(states: Tensor, standardised: bool) -> tuple[Tensor, Tensor]:
    """Return what is subtracted from each dimension, and what it is divided by: 0 and 1 if not standardised."""
    if not standardised:
        return torch.zeros_like(states[0]), torch.ones_like(states[0])
    deviation = states.std(0, correction=0)
    return states.mean(0), deviation.where(deviation > 0, 1.0)


def _unit(states: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return F.normalize((states - mean) / deviation, dim=1)


def _centred(values: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Return the valid values [n, M] minus the mean of each row's valid values, 0 for the others."""
    mean = values.where(valid, 0.0).sum(1, dtype=torch.float64) / count
    return (values - mean[:, None].to(values.dtype)).where(valid, 0.0)
