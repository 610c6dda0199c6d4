"""Measure scoring speed and separation: our scorer, the bare backbone and the four-pass loop.

    python -m bench scoring seed_tasks.jsonl -o bench/results/scoring.json

The three take turns, round after round, so other load on the machine affects all of them. `backbone` is only the packed
forward on the scorer's micro-batches with prepared inputs. `scorer` is everything from text to rows, including
tokenisation and memory bank. `four_pass` does what published tools do: p(x), p(y|x), p(y) and p(x|y), one sequence at a
time with full logits. All times are in seconds.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from main_align.data.pairs import SCORED, Pair, check_text
from main_align.models.devices import DTYPES
from main_align.models.encoding import EncodedSequence
from main_align.models.load import load
from main_align.models.packed_attention import packing_arguments
from main_align.models.smollm2 import SMOLLM2
from main_align.scoring.batching import BATCH_TOKENS
from main_align.scoring.scorer import Scorer

from .cases import Target
from .command import command_parser
from .measure import interleaved, machine
from .records import merged, read_rows, write_rows
from .report.tables import plain

SEPARATED = ("pmi_forward", "pmi_reverse", "mutual", "semantic")


def read_seed_tasks(path: Path) -> list[Pair]:
    """Read a self-instruct file: the instruction with its input, and the first output."""
    pairs = []
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        task = json.loads(text)
        first = task["instances"][0]
        parts = [part for part in (task["instruction"], first["input"]) if part]
        pairs.append(Pair(task["id"], line, "\n".join(parts), first["output"]))
    return pairs


def shuffled(pairs: list[Pair], seed: int) -> list[Pair]:
    """Pair every instruction with another pair's response."""
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    return [Pair(pair.id, pair.line, pair.instruction, pairs[other[row]].response) for row, pair in enumerate(pairs)]


def auc(aligned: list[float], other: list[float]) -> float:
    """Return the probability that an aligned pair scores higher than a shuffled one; a tie counts half."""
    a, b = np.array(aligned)[:, None], np.array(other)[None, :]
    return float((a > b).mean() + 0.5 * (a == b).mean())


class Contest:
    """Time three ways of scoring the same pairs with the same token ids."""

    def __init__(self, pairs: list[Pair], model: str, dtype: str, batch_tokens: int) -> None:
        self.pairs = pairs
        self.scorer = Scorer(model, dtype=dtype, batch_tokens=batch_tokens)
        self.plain = load(model, dtype=DTYPES[dtype], device=self.scorer.forward.device).model
        window = self.scorer.prepare(pairs)
        self.sequences = [
            [sequence for row in pack.rows for sequence in self._sequences(window.encoded[row])]
            for pack in window.micro_batches
        ]
        device = self.scorer.forward.device
        self.inputs = [
            {
                "input_ids": torch.tensor([[i for sequence in pack for i in sequence.ids]]).to(device),
                **packing_arguments([len(sequence.ids) for sequence in pack], device),
            }
            for pack in self.sequences
        ]
        self.tokens = sum(pack.tokens for pack in window.micro_batches)

    def _sequences(self, encoded: Any) -> tuple[EncodedSequence, EncodedSequence]:
        return self.scorer.encoder.sequences(encoded)

    @torch.inference_mode()
    def backbone(self) -> None:
        for inputs in self.inputs:
            self.scorer.forward.model.base_model(**inputs)

    def score(self) -> list[dict[str, Any]]:
        return self.scorer.score(self.pairs)

    @torch.inference_mode()
    def four_pass(self) -> list[float]:
        out = []
        for pack in self.sequences:
            for sequence in pack:
                alone = sequence.ids[: sequence.first_span[1]]
                for ids, (start, stop) in ((alone, sequence.first_span), (sequence.ids, sequence.second_span)):
                    row = torch.tensor([ids], device=self.plain.device)
                    logits = self.plain(row).logits[0, start - 1 : stop - 1].float()
                    out.append(float(-F.cross_entropy(logits, row[0, start:stop], reduction="sum")))
        return out


def measure(contest: Contest, dtype: str, rounds: int) -> dict[str, Any]:
    """Return a row of bench/records.py. One untimed call warms up the backbone."""
    contest.backbone()
    ways = {"backbone": contest.backbone, "ours": contest.score, "ours_again": contest.score}
    samples = interleaved({**ways, "four_pass": contest.four_pass}, rounds)
    roles = {"backbone": "floor", "ours": "ours", "ours_again": "again", "four_pass": "peer"}
    return {
        "suite": "scoring",
        "case": "score",
        "family": "scoring",
        "size": "mixed",
        "shape": {"pairs": len(contest.pairs)},
        "dtype": dtype,
        "inputs": "self-instruct",
        "machine": machine(),
        "runs": {
            name: {
                "role": role,
                "phase": "floor" if role == "floor" else "forward",
                "samples_s": [float(f"{seconds:.4g}") for seconds in samples[name]],
            }
            for name, role in roles.items()
        },
        "targets": [Target("ours", "backbone").in_row(dtype)],
        "differing": [],
        "facts": {"tokens": contest.tokens, "packs": len(contest.sequences)},
    }


def separation(scorer: Scorer, pairs: list[Pair], seed: int) -> dict[str, float]:
    """Return the AUC of aligned against shuffled pairs for each score."""
    aligned, other = scorer.score(pairs), scorer.score(shuffled(pairs, seed))
    both = [rows for rows in zip(aligned, other, strict=True) if _scored(rows)]
    return {name: auc([row[name] for row, _ in both], [row[name] for _, row in both]) for name in SEPARATED}


def _scored(rows: tuple[dict[str, Any], ...]) -> bool:
    return all(row["status"] in SCORED for row in rows)


def main(words: list[str] | None = None) -> int:
    parser = command_parser("scoring", __doc__)
    parser.add_argument("seed_tasks", type=Path, help="a self-instruct seed_tasks.jsonl")
    parser.add_argument("-o", "--out", type=Path, help="file of rows; rows of the same key are replaced, others kept")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--pairs", type=int, default=48, help="number of pairs, sampled with --seed; 0: all")
    parser.add_argument("--tokens", type=int, default=400, help="longest side, in characters / 4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    parser.add_argument("--no-auc", action="store_true", help="measure times only")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)

    pairs = read_seed_tasks(args.seed_tasks)
    random.Random(args.seed).shuffle(pairs)
    every = [pair for pair in pairs if check_text(pair).status == "ok"]
    drawn = [p for p in every if max(len(p.instruction), len(p.response)) <= 4 * args.tokens]
    drawn = drawn[: args.pairs or None]
    rows = []
    for dtype in args.dtypes:
        contest = Contest(drawn, args.model, dtype, args.batch_tokens)
        row = measure(contest, dtype, args.rounds)
        if not args.no_auc:
            scored = separation(contest.scorer, drawn, args.seed)
            row["facts"] |= {f"auc_{name}": value for name, value in scored.items()}
        rows.append(row)
        if args.out:
            write_rows(args.out, merged(read_rows(args.out), row))
    print(plain(rows))
    return 0
