"""Time a training step against its own matrix products and against TRL's SFTTrainer on the same tokens.

    python -m bench training -o bench/results/training.json
    python -m bench training my_pairs.jsonl --pairs 32 --dtype bfloat16

A row is one micro-batch. The runs take turns, round after round. Each runs forward and backward with its own copy of
the model; all weights are trained, without gradient checkpointing; bfloat16 means autocast. Freed memory is kept for
the next step, as MutualAlignmentTrainer.train does on a CPU, for all of them. Peak memory is measured in a process of
its own.

    products          the matrix products and the attention of forward and backward of <x><y>, head included, and
                      nothing else, attention in the faster of the dtype and float32; the floor of `ours`
    backbone          packed forward and backward of the model without its head
    ours              MutualAlignmentTrainer with directions="forward" and no alignment term
    ours_aligned      the same with the embedding terms
    ours_both         the same in both directions
    trl               SFTTrainer in padded batches
    trl_liger         the same with use_liger_kernel, on a GPU
    trl_padding_free  the same with padding_free, which needs flash attention and a GPU

Equality first: the loss of every peer must be that of `ours`; one that differs is listed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from main_align.data.pairs import Pair
from main_align.models.devices import DTYPES, has_bfloat16, pick_device
from main_align.models.encoding import PairEncoder
from main_align.models.load import load
from main_align.models.packed_attention import packed_forward, packing_arguments, use_packed_attention
from main_align.training import MutualAlignmentConfig, MutualAlignmentTrainer
from main_align.training.host_memory import keep_freed_memory
from trl import SFTConfig, SFTTrainer

from . import peers, session, texts
from .cases import Target
from .command import command_parser
from .measure import interleaved, machine, peak_over
from .products import Pack, fastest_products
from .records import Row, rounded
from .report.tables import plain

NO_TERMS = {"semantic_weight": 0.0, "intentional_weight": 0.0, "structural_weight": 0.0}
OURS: dict[str, dict[str, Any]] = {
    "ours": {"directions": "forward", **NO_TERMS},
    "ours_aligned": {"directions": "forward"},
    "ours_both": {"directions": "both"},
}
TRL: dict[str, dict[str, Any]] = {
    "trl": {},
    "trl_liger": {"use_liger_kernel": True},
    "trl_padding_free": {"padding_free": True},
}
FLOORS = ("products", "backbone")
CONTENDERS = (*FLOORS, *OURS, *TRL)
TARGETS = (Target("ours", "products", 1.20, 1.12), *(Target(name, "backbone") for name in OURS))
AGREEMENT = {"float32": 1e-4, "bfloat16": 0.02}
"""Nats by which the losses of two contenders may differ."""


class Contest:
    """Build the contenders for one micro-batch. Each is a step that returns its loss, the floors None."""

    def __init__(self, model: str, pairs: Sequence[Pair], dtype: str) -> None:
        self.model, self.dtype, self.device = model, dtype, pick_device("auto")
        self.rows = [{"prompt": pair.instruction, "completion": pair.response} for pair in pairs]
        encoder = PairEncoder(load(model).tokenizer)
        encoded = encoder.encode([(pair.instruction, pair.response) for pair in pairs], [()] * len(pairs))
        self.sequences = [encoder.sequences(pair)[0] for pair in encoded]  # <x><y> of each pair
        self.tokens: dict[str, int] = {}

    def make(self, name: str) -> Callable[[], float | None]:
        """Build a contender.

        Raises:
            Absent: it cannot run here.
        """
        if name in FLOORS:
            return getattr(self, name)()
        return self._ours(name) if name in OURS else self._trl(name)

    def products(self) -> Callable[[], None]:
        lengths = [len(sequence.ids) for sequence in self.sequences]
        scored = sum(sequence.second_span[1] - sequence.second_span[0] for sequence in self.sequences)
        model = load(self.model, device=self.device).model
        return fastest_products(model, [Pack(lengths, scored)], DTYPES[self.dtype], backward=True)

    def backbone(self) -> Callable[[], None]:
        model: Any = load(self.model, device=self.device).model.train()
        use_packed_attention(model)
        ids = torch.tensor([[i for sequence in self.sequences for i in sequence.ids]], device=self.device)
        packing = packing_arguments([len(sequence.ids) for sequence in self.sequences], self.device)
        self.tokens["backbone"] = ids.numel()
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

        def step() -> None:
            model.zero_grad()
            with autocast, packed_forward():
                model.base_model(input_ids=ids, **packing).last_hidden_state.float().square().mean().backward()

        return step

    def _settings(self) -> dict[str, Any]:
        return {
            "output_dir": tempfile.mkdtemp(),
            "bf16": self.dtype == "bfloat16",
            "use_cpu": self.device.type == "cpu",
            "per_device_train_batch_size": len(self.rows),
            "report_to": [],
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "logging_steps": 10**6,
        }

    def _ours(self, name: str) -> Callable[[], float]:
        args = MutualAlignmentConfig(**self._settings(), **OURS[name])
        loaded = load(self.model)
        dataset = Dataset.from_list(self.rows)
        trainer = MutualAlignmentTrainer(loaded.model, args, train_dataset=dataset, processing_class=loaded.tokenizer)
        return self._step(name, trainer)

    def _trl(self, name: str) -> Callable[[], float]:
        """Build SFTTrainer on the tokens of our forward sequences."""
        if name != "trl":
            peers.needs_a_gpu()
        if name == "trl_padding_free" and importlib.util.find_spec("flash_attn") is None:
            raise peers.Absent("flash-attn is not installed")
        tokenised = [
            {
                "input_ids": sequence.ids,
                "completion_mask": [int(place >= sequence.second_span[0]) for place in range(len(sequence.ids))],
            }
            for sequence in self.sequences
        ]
        loaded = load(self.model)
        if name == "trl_padding_free":
            loaded.model.set_attn_implementation("flash_attention_2")
        args = SFTConfig(**self._settings(), completion_only_loss=True, **TRL[name])
        dataset = Dataset.from_list(tokenised)
        trainer = SFTTrainer(loaded.model, args, train_dataset=dataset, processing_class=loaded.tokenizer)
        return self._step(name, trainer)

    def _step(self, name: str, trainer: Any) -> Callable[[], float]:
        batch = trainer.data_collator(list(trainer.train_dataset))
        model = trainer.accelerator.prepare(trainer.model)  # adds autocast to the forward
        model.train()
        self.tokens[name] = batch["input_ids"].numel()

        def step() -> float:
            model.zero_grad()
            loss = trainer.compute_loss(model, trainer._prepare_inputs(dict(batch)))
            loss.backward()
            return float(loss.detach())

        return step


def measure(contest: Contest, inputs: str, rounds: int, peak: Callable[[str], float]) -> Row:
    """Measure the row.

    Args:
        contest: the contenders of one micro-batch.
        inputs: name of the file that the texts come from.
        rounds: number of rounds.
        peak: returns the peak megabytes of a contender.

    Returns:
        A row of bench/records.py.
    """
    steps: dict[str, Callable[[], float | None]] = {}
    losses: dict[str, float] = {}
    missing: dict[str, str] = {}

    def warm(name: str) -> Callable[[], float | None]:
        step = contest.make(name)
        if (loss := step()) is not None:
            losses[name] = loss
        return step

    for name in CONTENDERS:
        step, why = session.attempt(functools.partial(warm, name))
        if step is None:
            missing[name] = str(why)
        else:
            steps[name] = step
            print(f"{name} is warm", file=sys.stderr, flush=True)
    again = {"ours_again": steps["ours"]} if "ours" in steps else {}

    def timed(step: Callable[[], float | None]) -> None:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    with keep_freed_memory(contest.device.type):
        samples = interleaved({name: functools.partial(timed, s) for name, s in {**steps, **again}.items()}, rounds)
    runs: dict[str, dict[str, Any]] = {}
    for name in (*CONTENDERS, *again):
        role = "floor" if name in FLOORS else "ours" if name in OURS else "again" if name in again else "peer"
        runs[name] = {"role": role, "phase": "floor" if role == "floor" else "forward+backward"}
        if name in missing:
            runs[name]["missing"] = missing[name]
            continue
        runs[name]["samples_s"] = rounded(samples[name])
        if name in losses:
            runs[name]["peak_mb"] = peak(name)
    return {
        "suite": "training",
        "case": "step",
        "family": "training",
        "size": "mixed",
        "shape": {"pairs": len(contest.rows)},
        "dtype": contest.dtype,
        "inputs": inputs,
        "machine": {**machine(), "peers": peers.versions(("trl", "liger-kernel"))},
        "runs": runs,
        "targets": [target.in_row(contest.dtype) for target in TARGETS],
        "differing": differing(losses, AGREEMENT[contest.dtype]),
        "facts": {f"tokens_{name}": tokens for name, tokens in contest.tokens.items()},
    }


def differing(losses: Mapping[str, float], tolerance: float) -> list[str]:
    """Return the peers whose loss is not that of `ours`; all are, if `ours` has none."""
    return [name for name in TRL if name in losses and not abs(losses[name] - losses.get("ours", 1e9)) <= tolerance]


def peak_in_a_process(words: Sequence[str], name: str) -> float:
    """Return the peak megabytes of a contender, measured in a process of its own.

    Args:
        words: the options of this command.
        name: the contender.
    """
    command = [sys.executable, "-m", "bench", "training", *words, "--peak", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split("peak")[-1])


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("training", __doc__)
    texts.add_options(parser, pairs=8)
    session.add_options(parser, rounds=3)
    parser.add_argument(
        "--dtype", choices=AGREEMENT, help="default: bfloat16 on a device with instructions for it, else float32"
    )
    parser.add_argument("--peak", choices=CONTENDERS, help="print the peak megabytes of one contender and exit")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    chosen = arguments(words)
    dtype = chosen.dtype or ("bfloat16" if has_bfloat16(pick_device("auto")) else "float32")
    contest = Contest(chosen.model, texts.read(chosen.input, chosen.pairs), dtype)
    if chosen.peak:
        print("peak", peak_over(contest.make(chosen.peak), lambda: 0))
        return 0
    peak = functools.partial(peak_in_a_process, words)
    inputs = Path(chosen.input).name
    done = session.measure_rows(
        [contest], lambda what: measure(what, inputs, chosen.rounds, peak), chosen.out, chosen.minutes
    )
    print(plain(done))
    return 1 if any(row["differing"] or session.wrong(row) for row in done) else 0
