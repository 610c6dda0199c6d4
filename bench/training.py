"""Measure training speed: a step of ours against TRL's SFTTrainer on the same tokens.

    python -m bench training seed_tasks.jsonl -o bench/results/training.json

Contenders take turns, round after round. Each runs forward and backward of one micro-batch with its own copy of the
model: bfloat16 autocast, no gradient checkpointing, all weights trained. Peak memory is measured in a process of its
own.

    backbone      packed forward and backward of the model without its head on the tokens of <x><y>; the floor of `ours`
    trl           SFTTrainer on the same tokens in padded batches (padding-free ones need flash attention and a GPU)
    ours          ours with directions="forward" and no alignment term; its loss must equal TRL's
    ours_aligned  the same with the embedding terms
    ours_both     the same in both directions
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from main_align.models.encoding import EncodedPair, PairEncoder
from main_align.models.load import load
from main_align.models.packed_attention import packed_forward, packing_arguments
from main_align.models.smollm2 import SMOLLM2
from main_align.training import MutualAlignmentConfig, MutualAlignmentTrainer
from trl import SFTConfig, SFTTrainer

from .cases import Target
from .command import command_parser
from .measure import interleaved, machine, peak_over
from .records import merged, read_rows, write_rows
from .report.tables import plain
from .texts import read

NO_TERMS = {"semantic_weight": 0.0, "intentional_weight": 0.0, "structural_weight": 0.0}
OURS: dict[str, dict[str, Any]] = {
    "ours": {"directions": "forward", **NO_TERMS},
    "ours_aligned": {"directions": "forward"},
    "ours_both": {"directions": "both"},
}
CONTENDERS = ("backbone", "trl", *OURS)
AGREEMENT = 0.02
"""Nats by which the losses of two contenders may differ, in bfloat16."""


class Contest:
    """Build the contenders for one micro-batch of pairs."""

    def __init__(self, model: str, tasks: Path, *, pairs: int, longest: int) -> None:
        self.model = model
        tokenizer = load(model).tokenizer
        self.encoder = PairEncoder(tokenizer)
        self.tokenizer = tokenizer
        rows = []
        for pair in read(tasks):
            (encoded,) = self.encoder.encode([(pair.instruction, pair.response)], [()])
            if self.encoder.length(encoded) <= longest:
                rows.append({"prompt": pair.instruction, "completion": pair.response})
            if len(rows) == pairs:
                break
        self.rows = rows
        self.tokens: dict[str, int] = {}
        self.losses: dict[str, float] = {}

    def make(self, name: str) -> Callable[[], None]:
        return {"backbone": self._backbone, "trl": self._trl}.get(name, lambda: self._ours(name))()

    def _settings(self) -> dict[str, Any]:
        folder = tempfile.mkdtemp()
        batch = {"per_device_train_batch_size": len(self.rows), "report_to": [], "save_strategy": "no"}
        return {"output_dir": folder, "bf16": True, "use_cpu": not torch.cuda.is_available(), **batch} | {
            "gradient_checkpointing": False,
            "logging_steps": 10**6,
        }

    def _ours(self, name: str) -> Callable[[], None]:
        args = MutualAlignmentConfig(**self._settings(), **OURS[name])
        loaded = load(self.model)
        dataset = Dataset.from_list(self.rows)
        trainer = MutualAlignmentTrainer(loaded.model, args, train_dataset=dataset, processing_class=loaded.tokenizer)
        return self._step(name, trainer, trainer.data_collator(list(trainer.train_dataset)))

    def _trl(self) -> Callable[[], None]:
        """Build SFTTrainer on the tokens of our forward sequences."""
        tokenised = []
        for row in self.rows:
            (pair,) = self.encoder.encode([(row["prompt"], row["completion"])], [()])
            forward, _ = self.encoder.sequences(pair)
            mask = [int(forward.second_span[0] <= place < forward.second_span[1]) for place in range(len(forward.ids))]
            tokenised.append({"input_ids": forward.ids, "completion_mask": mask})
        loaded = load(self.model)
        args = SFTConfig(**self._settings(), completion_only_loss=True)
        dataset = Dataset.from_list(tokenised)
        trainer = SFTTrainer(loaded.model, args, train_dataset=dataset, processing_class=loaded.tokenizer)
        return self._step("trl", trainer, trainer.data_collator(list(trainer.train_dataset)))

    def _step(self, name: str, trainer: Any, batch: dict[str, Any]) -> Callable[[], None]:
        model = trainer.accelerator.prepare(trainer.model)  # adds autocast to the forward
        model.train()
        self.tokens[name] = batch["input_ids"].numel()

        def step() -> None:
            model.zero_grad()
            loss = trainer.compute_loss(model, dict(batch))
            loss.backward()
            self.losses[name] = float(loss.detach())

        return step

    def _backbone(self) -> Callable[[], None]:
        from main_align.models.forward import Forward

        model: Any = load(self.model).model.train()
        Forward(model)
        pairs = self.encoder.encode([(r["prompt"], r["completion"]) for r in self.rows], [()] * len(self.rows))
        sequences = [self.encoder.sequences(EncodedPair(p.context, p.x, p.y))[0].ids for p in pairs]
        ids = torch.tensor([i for sequence in sequences for i in sequence])[None]
        packing = packing_arguments([len(s) for s in sequences], "cpu")
        self.tokens["backbone"] = ids.numel()

        def step() -> None:
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16), packed_forward():
                model.base_model(input_ids=ids, **packing).last_hidden_state.float().square().mean().backward()

        return step


def measure(contest: Contest, rounds: int, words: list[str]) -> dict[str, Any]:
    """Return a row of bench/records.py. The losses of `trl` and `ours` must be equal."""
    steps = {name: contest.make(name) for name in CONTENDERS}
    for name, step in steps.items():
        step()
        print(f"{name}: warm, {contest.tokens[name]} tokens", file=sys.stderr, flush=True)
    again = {"ours_again": steps["ours"]}
    samples = interleaved({**steps, **again}, rounds)
    runs: dict[str, dict[str, Any]] = {}
    for name, taken in samples.items():
        role = {"backbone": "floor", "trl": "peer", "ours_again": "again"}.get(name, "ours")
        runs[name] = {
            "role": role,
            "phase": "floor" if role == "floor" else "forward+backward",
            "samples_s": [float(f"{seconds:.4g}") for seconds in taken],
        }
        if name not in again:
            command = [sys.executable, "-m", "bench", "training", *words, "--peak", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[name]["peak_mb"] = float(done.stdout.split("peak")[-1])
    return {
        "suite": "training",
        "case": "step",
        "family": "training",
        "size": "mixed",
        "shape": {"pairs": len(contest.rows)},
        "dtype": "bfloat16",
        "inputs": "self-instruct",
        "machine": machine(),
        "runs": runs,
        "targets": [Target(name, "backbone").in_row("bfloat16") for name in OURS],
        "differing": ["trl"] if abs(contest.losses["ours"] - contest.losses["trl"]) > AGREEMENT else [],
        "facts": {f"tokens_{name}": tokens for name, tokens in contest.tokens.items()},
    }


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    parser = command_parser("training", __doc__)
    parser.add_argument("tasks", type=Path, help="seed_tasks.jsonl of yizhongw/self-instruct")
    parser.add_argument("-o", "--out", type=Path, help="file of rows; rows of the same key are replaced, others kept")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--pairs", type=int, default=16, help="pairs per micro-batch")
    parser.add_argument(
        "--longest", type=int, default=512, help="maximum sequence length in tokens; longer pairs are skipped"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=CONTENDERS, help="print the peak megabytes of one contender and exit")
    arguments = parser.parse_args(words)
    contest = Contest(arguments.model, arguments.tasks, pairs=arguments.pairs, longest=arguments.longest)
    if arguments.peak:
        step = contest.make(arguments.peak)
        print("peak", peak_over(step, lambda: 0))
        return 0
    row = measure(contest, arguments.rounds, words)
    if arguments.out:
        write_rows(arguments.out, merged(read_rows(arguments.out), row))
    print(plain([row]))
    return 1 if row["differing"] else 0
