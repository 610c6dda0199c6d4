"""MutualAlignmentLoop: runs the plan stage by stage, each of them from files to files."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Any

from ..environment import (
    versions,
)
from ..errors import UserError
from ..models.devices import pick_dtype, warn_if_slow
from ..models.load import LoadedModel
from ..progress import (
    Progress,
)
from ..scoring.scorer import Scorer
from .config import Direction, LoopConfig
from .distributed import Processes
from .generate_stage import PAIRS, Writer, collect, write_missing_sides
from .generation import Sampling, TransformersWriter, make_batches, make_prompts
from .model_pair import Directions, Known, check_same_vocabulary, identify, let_go
from .mutual_filter import MutualScorer, score_and_keep
from .pairs import PairSet, counts_of, read_seeds, read_unlabelled, read_written, training_rows
from .plan import Stage, make_plan
from .report import make_report, plot_report, write_report
from .run_dir import RunFolder
from .train_stage import check_training, stage_seed, train

FORMAT = 2  # of the run folder; raise it when stages change what they write
MEASURED = 256  # pairs whose likelihood is measured after each training stage


class MutualAlignmentLoop:
    """MAIN's loop (arXiv 2504.12913): rounds in which two directions train each other, then the filter.

        report = MutualAlignmentLoop(LoopConfig(seeds="pairs.jsonl", output_dir="run", rounds=2)).run()

    Args:
        config: what is run; see `plan` for the stages.
        restart: throw away the run that `output_dir` holds.
        say: called with each Progress. tell: called with a line of text where a stage begins or ends.

    Raises UserError, before anything is trained, for what cannot work: inputs without usable rows, models or
    tokenizers that do not fit, settings that the trainer does not know, a folder that holds another run.
    """

    def __init__(
        self,
        config: LoopConfig,
        *,
        restart: bool = False,
        say: Callable[[Progress], None] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.restart = config, restart
        self.processes = Processes(use_cpu=config.use_cpu)
        first = self.processes.first
        self.say: Callable[[Progress], None] = say if say and first else lambda progress: None
        self.tell: Callable[[str], None] = tell if tell and first else lambda text: None
        self.folder = RunFolder(Path(config.output_dir))
        dtype = pick_dtype(config.dtype, self.processes.device)
        warn_if_slow(dtype, self.processes.device)
        self.dtype = str(dtype).removeprefix("torch.")
        self.plan = make_plan(config)
        trains = next(stage for stage in self.plan if stage.work == "train")
        check_training(config, trains, self.dtype, self.processes.device)
        self._check_generator()
        self.seeds = read_seeds(config.seeds, config)
        self.heldout = read_seeds(config.heldout, config) if config.heldout else None
        self.unlabelled = read_unlabelled(config.unlabelled, config) if config.unlabelled else None
        for found in (self.seeds, self.heldout):
            counts = Counter(pair.status for pair in found.pairs) if found is not None else {}
            if found is not None and counts["mismatched"]:
                self.tell(f"{found.name}: {counts_of(counts)}")
        forward = identify(config.model, config)
        reverse = identify(config.reverse_model, config) if config.reverse_model else forward
        check_same_vocabulary(forward, reverse)
        self.known: dict[Direction, Known] = {"forward": forward, "reverse": reverse}
        self.directions = Directions(config, self.folder, self.known, self.processes.device, self.dtype)

    def run(self) -> dict[str, Any]:
        """Run every stage that is not finished, and return (and write) the report."""
        settings = self.settings()
        if self.processes.first:
            self.folder.lock()
        try:
            if self.processes.first:
                self.folder.claim(settings, restart=self.restart)
            self.processes.wait()
            for stage in self.plan:
                if self.folder.done(stage.name):
                    self.tell(f"{stage.name}: done before")
                else:
                    self._run_stage(stage, settings)
            report = make_report(self.config, self.plan, self.folder)
            if self.processes.first:
                write_report(self.folder.path / "report.json", report)
                plot_report(self.folder.path / "report.png", report, self.plan, self.folder)
            self.processes.wait()
            return report
        finally:
            self.folder.unlock()

    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on; what a later run is compared with."""
        config = asdict(self.config)
        del config["output_dir"]
        inputs = {"seeds": self.seeds, "heldout": self.heldout, "unlabelled": self.unlabelled}
        return {
            "format": FORMAT,
            "config": config,
            "inputs": {name: _identity(found) for name, found in inputs.items() if found is not None},
            "models": {direction: known.digest for direction, known in self.known.items()},
            "dtype": self.dtype,
            "device": self.processes.device.type,
            "processes": self.processes.count,
        }

    def _check_generator(self) -> None:
        if self.config.generator != "vllm":
            return
        if find_spec("vllm") is None:
            raise UserError("generator vllm: it is not installed. pip install vllm, or use generator transformers")
        if self.processes.count > 1:
            raise UserError("generator vllm runs in one process: start without accelerate, or use transformers")

    def _run_stage(self, stage: Stage, settings: Mapping[str, Any]) -> None:
        self.tell(f"{stage.name} ...")
        work, began = self.folder.partial(stage.name), time.monotonic()
        if self.processes.first:
            if stage.work == "train":
                shutil.rmtree(work, ignore_errors=True)
            work.mkdir(exist_ok=True)
        self.processes.wait()
        run = {"train": self._train, "synthesise": self._write, "augment": self._write, "filter": self._filter}
        made = run[stage.work](stage, work)
        let_go()
        if self.processes.first:
            manifest = {
                "stage": stage.name,
                "work": stage.work,
                "direction": stage.direction,
                "round": stage.round,
                "reads": {"forward": stage.forward, "reverse": stage.reverse, "pairs": stage.pairs},
                "settings_digest": "sha256:" + sha256(dumps(settings, sort_keys=True).encode()).hexdigest(),
                "seed": stage_seed(self.config, stage),
                **made,
                "stage_seconds": round(time.monotonic() - began, 3),
                "versions": versions(),
            }
            self.folder.finish(stage.name, manifest)
        self.processes.wait()

    # ---- a model writes ----

    def _write(self, stage: Stage, work: Path) -> dict[str, Any]:
        found = self.unlabelled if stage.work == "augment" else self.seeds
        assert found is not None
        known, new = self.known[stage.direction], self.config.max_new_tokens
        prompts, refused = make_prompts(found.pairs, known.encoder, stage.direction, new, known.context)
        batches = make_batches(prompts, new, self.config.batch_tokens)
        tokens, seconds = write_missing_sides(
            batches, lambda: self._writer(stage), work, self.processes, self.say, stage.name
        )
        self.processes.wait()
        collected = collect(found.pairs, refused, batches, stage.direction, work) if self.processes.first else None
        counts, total = self.processes.agree(collected)
        if not counts.get("ok"):
            raise UserError(
                f"{stage.name}: the {stage.direction} model wrote nothing usable ({counts_of(counts)}; see "
                f"{work / PAIRS}). Where texts are unfinished raise max_new_tokens or warmup_epochs, then run again."
            )
        self.tell(f"{stage.name}: {counts_of(counts)}")
        speed = round(tokens / max(seconds, 1e-9), 1)
        return {"counts": counts, "tokens": total, "seconds": round(seconds, 3), "tokens_per_second": speed}

    def _writer(self, stage: Stage) -> Writer:
        c, known = self.config, self.known[stage.direction]
        sampling = Sampling(c.max_new_tokens, c.temperature, c.top_p, stage_seed(c, stage))
        empty = "empty_response" if stage.direction == "forward" else "empty_instruction"
        if not self._uses_vllm():
            return TransformersWriter(self.directions.to_write(stage), known.tokenizer, sampling, empty)
        from .vllm import VllmWriter

        model, adapter = self.directions.served(stage)
        return VllmWriter(
            model,
            known.tokenizer,
            sampling,
            empty,
            dtype=self.dtype,
            max_length=known.context,
            adapter=None if adapter is None else (adapter, c.lora_r),
            trust_remote_code=c.trust_remote_code,
        )

    def _uses_vllm(self) -> bool:
        if self.config.generator != "auto":
            return self.config.generator == "vllm"
        alone_on_cuda = self.processes.count == 1 and self.processes.device.type == "cuda"
        return alone_on_cuda and find_spec("vllm") is not None

    # ---- a model trains ----

    def _train(self, stage: Stage, work: Path) -> dict[str, Any]:
        written = read_written(self.folder.stage(stage.pairs) / PAIRS) if stage.pairs else []
        rows = training_rows(self.seeds.good, written)
        model = self.directions.to_train(stage, stage_seed(self.config, stage))
        tokenizer = self.known[stage.direction].tokenizer
        settings = {"config": self.config, "stage": stage, "dtype": self.dtype, "device": self.processes.device}
        made = train(model, tokenizer, rows, settings, work, self.processes, self.say)
        if self.processes.first:
            self.directions.save(model, stage.direction, work)
            made |= self._measure(model, stage)
            alpha = "" if made["alpha"] is None else f", alpha {made['alpha']:.3f}"
            nll = f"{made['nll']:.3f} nats/token on {made['nll_of']}"
            self.tell(f"{stage.name}: loss {made['loss']:.3f}{alpha}, {nll}")
        return {"seeds": len(self.seeds.good), "synthetic": len(written), **made}

    def _measure(self, model: Any, stage: Stage) -> dict[str, Any]:
        """Mean -log p of the trained side, nats per token, over the held-out pairs (else the seeds)."""
        found, name = (self.heldout, "heldout") if self.heldout else (self.seeds, "seeds")
        known = self.known[stage.direction]
        plain = model.get_base_model() if self.config.use_peft else model
        scorer = Scorer(LoadedModel(plain.eval(), known.tokenizer, stage.name, None, ""), max_length=known.context)
        nll, tokens = ("nll_y_given_x", "tokens_y") if stage.direction == "forward" else ("nll_x_given_y", "tokens_x")
        scored = [row for row in scorer.score(found.good[:MEASURED]) if row[nll] is not None]
        count = sum(row[tokens] for row in scored)
        total = sum(row[nll] * row[tokens] for row in scored)
        return {"nll": total / count if count else None, "nll_of": name, "nll_pairs": len(scored)}

    # ---- the filter ----

    def _filter(self, stage: Stage, work: Path) -> dict[str, Any]:
        if not self.processes.first:
            return {}
        assert stage.pairs is not None
        forward, reverse, use = self.directions.to_score(stage)
        # its length is the context's: what was written is at most prompt and max_new_tokens long
        scorer = MutualScorer(forward, reverse, use, max_length=self.known["forward"].context, seed=self.config.seed)
        began = time.monotonic()
        written = self.folder.stage(stage.pairs) / PAIRS
        manifest, kept = score_and_keep(scorer, written, work, self.config.criterion, self.config.keep, self.say)
        self.tell(f"{stage.name}: kept {int(kept.kept.sum()):,} of {kept.table.rows:,} pairs by {kept.by}")
        return {
            "counts": dict(manifest["counts"]),
            "kept": int(kept.kept.sum()),
            "by": kept.by,
            "limit": kept.threshold,
            "seconds": round(time.monotonic() - began, 3),
            "tokens_per_second": manifest["throughput"]["tokens_per_second"],
        }


def _identity(found: PairSet) -> dict[str, Any]:
    return {"rows": found.info.rows, "size": found.info.size, "digest": found.info.digest}
