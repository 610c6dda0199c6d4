"""MutualAlignmentLoop: run the stages of MAIN's loop, each from files to files."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

from ..environment import versions
from ..models.devices import pick_dtype, warn_if_slow
from ..progress import Progress
from .config import Direction, LoopConfig
from .context import LoopContext, LoopInputs
from .distributed import Processes
from .generate_stage import check_generator, run_generate_stage
from .model_pair import ModelInfo, ModelPair, check_same_vocabulary, free_memory, inspect_model
from .mutual_filter import run_filter_stage
from .pairs import PairSet, format_counts, read_pairs, read_unpaired_responses
from .plan import Stage, Work, make_plan
from .report import make_report, plot_report, write_report
from .run_dir import RunDir
from .train_stage import check_training, run_train_stage

FORMAT = 5  # of the run folder; raise it when stages change what they write

RUN_STAGE: Mapping[Work, Callable[[LoopContext, Stage, Path], dict[str, Any]]] = {
    "train": run_train_stage,
    "generate": run_generate_stage,
    "augment": run_generate_stage,
    "filter": run_filter_stage,
}


class MutualAlignmentLoop:
    """Run MAIN's loop: rounds in which two directions train on each other's output, then the mutual filter.

    Source: "Mutual Alignment Is Necessary for instruction tuning" (arXiv 2504.12913).

        report = MutualAlignmentLoop(LoopConfig(seed_pairs="pairs.jsonl", output_dir="run", rounds=2)).run()

    Args:
        config: settings of the run; `plan` lists the stages.
        restart: delete the run in `output_dir` and start over.
        on_progress: called with each Progress. Default: no progress.
        log: called with a line of text when a stage starts or ends. Default: no log.

    Raises:
        UserError: the run cannot work: an input without usable rows, models or tokenizers that do not fit, an unknown
            trainer setting, or a folder with another run. Raised before any training.
    """

    def __init__(
        self,
        config: LoopConfig,
        *,
        restart: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.restart, self.plan = config, restart, make_plan(config)
        self.processes = Processes(use_cpu=config.use_cpu)
        is_main, device = self.processes.is_main, self.processes.device
        log = log if log and is_main else lambda line: None
        run_dir = RunDir(Path(config.output_dir))
        torch_dtype = pick_dtype(config.dtype, device)
        warn_if_slow(torch_dtype, device)
        dtype = str(torch_dtype).removeprefix("torch.")
        check_training(config, next(stage for stage in self.plan if stage.work == "train"), dtype, device)
        check_generator(config, self.processes)
        inputs = _read_inputs(config, log)
        forward = inspect_model(config.model, config)
        reverse = inspect_model(config.reverse_model, config) if config.reverse_model else forward
        check_same_vocabulary(forward, reverse)
        info: dict[Direction, ModelInfo] = {"forward": forward, "reverse": reverse}
        self.context = LoopContext(
            config=config,
            inputs=inputs,
            models=ModelPair(config, run_dir, info, device, dtype),
            run_dir=run_dir,
            processes=self.processes,
            dtype=dtype,
            on_progress=on_progress if on_progress and is_main else lambda progress: None,
            log=log,
        )

    def run(self) -> dict[str, Any]:
        """Run every stage that is not finished and write the report.

        Returns:
            The contents of report.json; `make_report` lists them.

        Raises:
            UserError: another run uses the folder, the folder has a run with other settings, or a model generates no
                usable text.
        """
        settings = self.settings()
        run_dir, processes = self.context.run_dir, self.processes
        if processes.is_main:
            run_dir.lock()
        try:
            if processes.is_main:
                run_dir.claim(settings, restart=self.restart)
                run_dir.begin_session([stage.name for stage in self.plan])
            processes.barrier()
            for stage in self.plan:
                if run_dir.is_finished(stage.name):
                    self.context.log(f"{stage.name}: already finished")
                else:
                    self._run_stage(stage, settings)
            report = make_report(self.config, self.plan, run_dir)
            if processes.is_main:
                write_report(run_dir.path / "report.json", report)
                plot_report(run_dir.path / "report.png", report, self.plan, run_dir)
            processes.barrier()
            return report
        finally:
            run_dir.unlock()

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the result, for comparison on resume."""
        config = asdict(self.config)
        del config["output_dir"]
        inputs = {name: _identity(each) for name, each in vars(self.context.inputs).items() if each is not None}
        return {
            "format": FORMAT,
            "config": config,
            "inputs": inputs,
            "models": {direction: info.digest for direction, info in self.context.models.info.items()},
            "dtype": self.context.dtype,
            "device": self.processes.device.type,
            "processes": self.processes.world_size,
        }

    def _run_stage(self, stage: Stage, settings: Mapping[str, Any]) -> None:
        self.context.log(f"{stage.name} ...")
        run_dir, processes = self.context.run_dir, self.processes
        work_dir, start = run_dir.partial_dir(stage.name), time.monotonic()
        if processes.is_main:
            if stage.work == "train":
                shutil.rmtree(work_dir, ignore_errors=True)
            work_dir.mkdir(exist_ok=True)
        processes.barrier()
        results = RUN_STAGE[stage.work](self.context, stage, work_dir)
        free_memory()
        if processes.is_main:
            manifest = {
                "stage": stage.name,
                "work": stage.work,
                "direction": stage.direction,
                "round": stage.round,
                "reads": {"forward": stage.forward_stage, "reverse": stage.reverse_stage, "pairs": stage.pairs_stage},
                "settings_digest": "sha256:" + sha256(dumps(settings, sort_keys=True).encode()).hexdigest(),
                "seed": self.context.stage_seed(stage),
                **results,
                "stage_seconds": round(time.monotonic() - start, 3),
                "versions": versions(),
            }
            run_dir.finish(stage.name, manifest)
        processes.barrier()


def _read_inputs(config: LoopConfig, log: Callable[[str], None]) -> LoopInputs:
    """Read the data of the run and log the rows with `aligned: false`, which are not used."""
    inputs = LoopInputs(
        seed_pairs=read_pairs(config.seed_pairs, config),
        eval_pairs=read_pairs(config.eval_pairs, config) if config.eval_pairs else None,
        unpaired_responses=(
            read_unpaired_responses(config.unpaired_responses, config) if config.unpaired_responses else None
        ),
    )
    for pair_set in (inputs.seed_pairs, inputs.eval_pairs):
        counts = Counter(pair.status for pair in pair_set.pairs) if pair_set is not None else {}
        if pair_set is not None and counts["mismatched"]:
            log(f"{pair_set.name}: {format_counts(counts)}")
    return inputs


def _identity(pair_set: PairSet) -> dict[str, Any]:
    return {"rows": pair_set.info.rows, "size": pair_set.info.size, "digest": pair_set.info.digest}
