"""PassCache: log-probabilities of every token and pooled states of several layers, kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from main_align.data.pairs import Pair
from main_align.models.encoding import EncodedSequence
from main_align.models.packing import pack
from main_align.scoring.scorer import Scorer
from numpy.typing import NDArray

from main_kernels import segment_pool

BLOCK = 64  # pairs of one file; an interrupted run repeats at most these
LOGPS = ("y_given_x", "y", "x_given_y", "x")


@dataclass(frozen=True, slots=True)
class Passes:
    """Both passes over one pair.

    Args:
        ids: token ids of x and of y, without end-of-turn tokens.
        logp: for each of LOGPS, float32[tokens], the log-probability of each scored token, end-of-turn included.
        states: for x and for y, float32[L, D], mean states of each layer, read without the other side; unit length.
    """

    ids: dict[str, NDArray[np.int64]]
    logp: dict[str, NDArray[np.float32]]
    states: dict[str, NDArray[np.float32]]


class PassCache:
    """Files with the passes of pairs, by pair id.

    Args:
        folder: the folder of the files; created if it does not exist.
        scorer: the model.
        layers: layers whose states are pooled, counted from 1; the last one is taken after the final norm.
    """

    def __init__(self, folder: Path, scorer: Scorer, layers: Sequence[int]) -> None:
        self.folder, self.scorer, self.layers = folder, scorer, tuple(layers)
        self.passes: dict[str, Passes] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.npz")):
            self._read(path)

    def run(self, pairs: Sequence[Pair], on_block: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Run the pairs that are not in the cache, and write each block of them at once.

        Args:
            pairs: the pairs; their ids are the keys of the cache.
            on_block: called after each block with the number of pairs that are done and of all pairs.
        """
        todo = [pair for pair in pairs if pair.id not in self.passes]
        for start in range(0, len(todo), BLOCK):
            block = todo[start : start + BLOCK]
            self._run_block(block)
            on_block(len(pairs) - len(todo) + start + len(block), len(pairs))

    def _run_block(self, pairs: Sequence[Pair]) -> None:
        window = self.scorer.prepare(pairs)
        if reasons := [reason for reason in window.reason if reason]:
            raise ValueError(f"pairs cannot be scored: {reasons[0]}")
        arrays: dict[str, Any] = {"id": np.array([pair.id for pair in pairs])}
        for batch in window.micro_batches:
            encoded = [window.encoded[row] for row in batch.rows]
            sequences = [sequence for pair in encoded for sequence in self.scorer.encoder.sequences(pair)]
            logps, pooled = self._forward(sequences)
            for at, (row, pair) in enumerate(zip(batch.rows, encoded, strict=True)):
                (x, y_given_x), (y, x_given_y) = logps[2 * at], logps[2 * at + 1]
                arrays |= {f"{row}.ids_x": np.array(pair.x), f"{row}.ids_y": np.array(pair.y)}
                arrays |= {f"{row}.{n}": v for n, v in zip(LOGPS, (y_given_x, y, x_given_y, x), strict=True)}
                arrays |= {f"{row}.states_x": pooled[2 * at], f"{row}.states_y": pooled[2 * at + 1]}
        path = self.folder / f"{len(list(self.folder.glob('*.npz'))):05d}.npz"
        with path.with_suffix(".new").open("wb") as file:
            np.savez(file, **arrays)
        path.with_suffix(".new").rename(path)
        self._read(path)

    @torch.inference_mode()
    def _forward(
        self, sequences: Sequence[EncodedSequence]
    ) -> tuple[list[tuple[NDArray[np.float32], NDArray[np.float32]]], NDArray[np.float32]]:
        forward, states = self.scorer.forward, {}
        modules = forward.model.base_model.layers
        hooks = [
            modules[layer - 1].register_forward_hook(
                lambda _, __, out, layer=layer: states.__setitem__(layer, out[0] if isinstance(out, tuple) else out)
            )
            for layer in self.layers
        ]
        try:
            hidden = forward.states(pack([sequence.ids for sequence in sequences], share=False))
        finally:
            for hook in hooks:
                hook.remove()
        states[len(modules)] = hidden[None]
        starts = np.cumsum([0] + [len(sequence.ids) for sequence in sequences])[:-1]
        ids = np.concatenate([sequence.ids for sequence in sequences])
        logps = []
        tokens = np.concatenate(
            [
                np.arange(start + a, start + b)
                for start, s in zip(starts, sequences, strict=True)
                for a, b in (s.first_span, s.second_span)
            ]
        )
        values = forward.logprobs(hidden[torch.from_numpy(tokens - 1)], torch.from_numpy(ids[tokens])).cpu().numpy()
        at = 0
        for s in sequences:
            n, m = s.first_span[1] - s.first_span[0], s.second_span[1] - s.second_span[0]
            logps.append((values[at : at + n].copy(), values[at + n : at + n + m].copy()))
            at += n + m
        rows = np.concatenate(
            [
                np.arange(start + s.pool_span[0], start + s.pool_span[1])
                for start, s in zip(starts, sequences, strict=True)
            ]
        )
        bounds = torch.from_numpy(np.cumsum([0] + [s.pool_span[1] - s.pool_span[0] for s in sequences]))
        pooled = [segment_pool(states[layer][0][torch.from_numpy(rows)].float(), bounds) for layer in self.layers]
        return logps, torch.stack(pooled, 1).cpu().numpy()

    def _read(self, path: Path) -> None:
        with np.load(path) as arrays:
            for row, name in enumerate(arrays["id"].tolist()):
                self.passes[name] = Passes(
                    {side: arrays[f"{row}.ids_{side}"] for side in "xy"},
                    {name: arrays[f"{row}.{name}"] for name in LOGPS},
                    {side: arrays[f"{row}.states_{side}"] for side in "xy"},
                )
