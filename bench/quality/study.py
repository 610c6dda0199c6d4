"""Study: does mutual alignment help? One command from the pairs to the plots.

    python -m bench.quality.study seed_tasks.jsonl                         # everything; resumes
    python -m bench.quality.study seed_tasks.jsonl --parts cleaning        # one part
    python -m bench.quality.report bench/results/quality.json               # only tables and plots

    cleaning   detection of shuffled responses by each score, without training
    terms      fine-tuning with no term, each term, both directions, and everything: held-out likelihoods and retrieval
    kept       fine-tuning on the part of a corrupted training set that each score keeps

`seed_tasks.jsonl` comes from yizhongw/self-instruct, the other examples from this repository. Hard pairs use the
nearest neighbours of a sentence encoder if it is installed (see encoder.py), else of the model's embeddings. Each
finished run is written at once.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from main_align.data.pairs import Pair
from main_align.models.encoding import PairEncoder

from ..measure import machine
from . import cleaning, encoder, experiments, report
from .experiments import Setting
from .measures import evaluate, run_model, summary
from .pairs import draw_partners, drop_long, nearest_neighbours, split, swap_responses
from .pairs import read as read_pairs
from .results import ResultsFile

BENCH = Path(__file__).parents[1]
PARTS = ("cleaning", "terms", "kept")
BASE = "untrained"
KEPT = ("everything", "truth", "random", "mutual", "pmi_forward", "nll_y_given_x", "ifd")


@dataclass(frozen=True)
class Unit:
    """One run of the study: its name in the results and the function that runs it."""

    part: str
    experiment: str
    seed: int
    run: Callable[[], dict[str, Any]]


class Study:
    """The pairs, models and units of work. Expensive parts are cached properties."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.setting = Setting(
            options.model,
            options.epochs,
            options.batch,
            options.learning_rate,
            options.rank,
            options.layers,
            options.longest,
        )
        self.base = experiments.load_base(self.setting)
        all_pairs = read_pairs(options.seed_tasks, options.examples)
        fitting = drop_long(all_pairs, PairEncoder(self.base.tokenizer), options.longest)
        held = len(fitting) - options.train
        if held < 2:
            raise SystemExit(f"{len(fitting)} pairs are short enough, too few to train on {options.train}")
        self.train, self.held = split(fitting, held, options.split_seed)
        self.dropped = len(all_pairs) - len(fitting)
        instructions = [pair.instruction for pair in (*self.train, *self.held)]
        self.outside = encoder.encode(instructions) if encoder.version() else None
        self.results = ResultsFile(options.out, self.settings(), restart=options.restart)

    def settings(self) -> dict[str, Any]:
        """Return the settings that all results of one file share."""
        options = self.options
        return asdict(self.setting) | {
            "train_pairs": len(self.train),
            "held_out_pairs": len(self.held),
            "dropped_for_length": self.dropped,
            "split_seed": options.split_seed,
            "corrupted_share": options.corrupted,
            "neighbours": "sentence encoder" if self.outside is not None else "own embeddings",
        }

    def units(self) -> Iterator[Unit]:
        """Yield every run of the chosen parts."""
        seeds = self.options.seeds
        if "cleaning" in self.options.parts:
            for kind in cleaning.KINDS:
                for seed in range(self.options.corruptions):
                    yield Unit("cleaning", kind, seed, lambda k=kind, s=seed: self.find_corrupted(k, s))
        if "terms" in self.options.parts:
            yield Unit("terms", BASE, 0, self.evaluate_base)
            for seed in seeds:
                for experiment in experiments.EXPERIMENTS:
                    yield Unit("terms", experiment, seed, lambda a=experiment, s=seed: self.train_experiment(a, s))
        if "kept" in self.options.parts:
            for seed in seeds:
                for criterion in KEPT:
                    yield Unit("kept", criterion, seed, lambda c=criterion, s=seed: self.train_on_kept(c, s))

    def run(self) -> None:
        """Run every unit that is not in the results file."""
        here = machine()  # once, because later commits do not change the loaded code
        self.results.describe(machine=here | {"encoder": encoder.version()})
        every = list(self.units())
        units = [unit for unit in every if self.results.find(unit.part, unit.experiment, unit.seed) is None]
        took: dict[str, list[float]] = {}
        for number, unit in enumerate(units, 1 + len(every) - len(units)):
            _say(f"[{number}/{len(every)}] {unit.part}: {unit.experiment}, seed {unit.seed}")
            start = time.perf_counter()
            result = unit.run()
            seconds = time.perf_counter() - start
            facts = {"part": unit.part, "experiment": unit.experiment, "seed": unit.seed, "seconds": round(seconds, 1)}
            self.results.add(facts | {"commit": here["commit"]} | result)
            took.setdefault(unit.part, []).append(seconds)
            left = _left(units[units.index(unit) + 1 :], took)
            _say(f" {seconds:.0f} s; about {left / 60:.0f} min remaining\n")

    def evaluate_base(self) -> dict[str, Any]:
        """Evaluate the untrained model."""
        return self._held_out(self.base.model)

    def train_experiment(self, experiment: str, seed: int) -> dict[str, Any]:
        """Train and evaluate one experiment."""
        trained = experiments.train(self.setting, experiment, self.train, seed)
        return {"facts": trained.facts} | self._held_out(trained.model, trained.head)

    def find_corrupted(self, kind: str, seed: int) -> dict[str, Any]:
        """Corrupt the training pairs and score them with every criterion."""
        partner = self._corruption(kind, seed)
        rows = [row for row, other in enumerate(partner) if row != other]
        bad = [swap_responses(self.train, partner)[row] for row in rows]
        outputs = cleaning.replace_rows(self._clean, run_model(self.base.model, self.base.tokenizer, bad), rows)
        encoder_cosine = None
        if self._outside_responses is not None:
            encoder_cosine = np.einsum("nd,nd->n", self.outside[: len(self.train)], self._outside_responses[partner])
        corrupted = np.array(partner) != np.arange(len(partner))
        return cleaning.corruption_record(outputs, encoder_cosine, corrupted)

    def train_on_kept(self, criterion: str, seed: int) -> dict[str, Any]:
        """Fine-tune on the pairs that a criterion keeps, with as many optimizer steps as `everything`."""
        kind = cleaning.KINDS[0]
        pairs = swap_responses(self.train, self._corruption(kind, seed))
        record = self.results.find("cleaning", kind, seed) or self.find_corrupted(kind, seed)
        corrupted = set(record["corrupted"])
        goodness: dict[str, Sequence[float]] = {
            "everything": [],
            "truth": [-float(row in corrupted) for row in range(len(pairs))],
            "random": np.random.default_rng(seed).random(len(pairs)).tolist(),
        }
        good = goodness[criterion] if criterion in goodness else record["goodness"][criterion]
        rows = cleaning.keep_best(good, self.options.corrupted) if len(good) else list(range(len(pairs)))
        steps = int(self.setting.epochs * -(-len(pairs) // self.setting.batch))
        trained = experiments.train(self.setting, experiments.PLAIN, [pairs[row] for row in rows], seed, steps)
        facts = trained.facts | {"pairs": len(rows), "corrupted_left": len(corrupted & set(rows))}
        return {"facts": facts} | self._held_out(trained.model)

    def _held_out(self, model: Any, head: Any = None) -> dict[str, Any]:
        kept = evaluate(model, self.base.tokenizer, self.held, self._hard, self._partners, head)
        return {"metrics": summary(kept), "pairs": kept}

    def _corruption(self, kind: str, seed: int) -> list[int]:
        nearest = self._nearest(self.train) if kind == "hard" else None
        return draw_partners(self.train, self.options.corrupted, seed, nearest)

    def _nearest(self, pairs: list[Pair]) -> list[int]:
        if self.outside is not None:
            start = 0 if pairs is self.train else len(self.train)
            return nearest_neighbours(pairs, self.outside[start : start + len(pairs)])
        embeddings = run_model(self.base.model, self.base.tokenizer, pairs).embed_x
        centred = embeddings - embeddings.mean(0)
        return nearest_neighbours(pairs, centred / np.linalg.norm(centred, axis=1, keepdims=True))

    @cached_property
    def _partners(self) -> list[int]:
        return self._nearest(self.held)

    @cached_property
    def _hard(self) -> list[Pair]:
        return swap_responses(self.held, self._partners)

    @cached_property
    def _clean(self) -> Any:
        return run_model(self.base.model, self.base.tokenizer, self.train)

    @cached_property
    def _outside_responses(self) -> Any:
        return None if self.outside is None else encoder.encode([pair.response for pair in self.train])


def _left(units: Sequence[Unit], took: dict[str, list[float]]) -> float:
    """Estimate the seconds that `units` will take from the mean of each part so far."""
    everything = statistics.fmean(value for values in took.values() for value in values)
    return sum(statistics.fmean(took.get(unit.part, [everything])) for unit in units)


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed_tasks", type=Path, help="a self-instruct seed_tasks.jsonl")
    parser.add_argument(
        "--examples", type=Path, default=BENCH.parent / "examples" / "pairs.jsonl", help="additional pairs"
    )
    parser.add_argument("-o", "--out", type=Path, default=BENCH / "results" / "quality.json")
    parser.add_argument("--page", type=Path, help="write the tables into this file (default: docs/quality.md)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training (default 0 1 2)")
    parser.add_argument("--corruptions", type=int, default=5, help="corruptions of each kind (default 5)")
    parser.add_argument("--corrupted", type=float, default=0.3, help="fraction of responses to exchange (default 0.3)")
    parser.add_argument(
        "--train", type=int, default=96, help="number of training pairs; the rest is held out (default 96)"
    )
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--longest", type=int, default=112, help="maximum tokens; longer pairs are dropped (default 112)"
    )
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=16, help="pairs per optimizer step, contrasted with each other")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=16, help="rank of the LoRA adapter")
    parser.add_argument("--layers", type=int, default=10, help="number of top layers with an adapter (default 10)")
    parser.add_argument("--threads", type=int, help="threads of torch; 1 on a shared machine")
    parser.add_argument("--restart", action="store_true", help="delete the runs in the results file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("main_align", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    Study(chosen).run()
    report.make(chosen.out, chosen.page or BENCH.parent / "docs" / "quality.md")


if __name__ == "__main__":
    main()
