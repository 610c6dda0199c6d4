"""LoopContext and LoopInputs: the state that all stages of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..progress import Progress
from .config import STAGE_SEEDS, LoopConfig
from .distributed import Processes
from .model_pair import ModelPair
from .pairs import PairSet
from .plan import Stage
from .run_dir import RunDir


@dataclass(frozen=True)
class LoopInputs:
    """The data of a run; the optional inputs are None if they are not given."""

    seed_pairs: PairSet
    eval_pairs: PairSet | None
    unpaired_responses: PairSet | None


@dataclass(frozen=True)
class LoopContext:
    """The state that all stages of a run share.

    Args:
        config: settings of the run.
        inputs: data of the run.
        models: loads and saves both models.
        run_dir: folder of the run.
        processes: this process and its group.
        dtype: dtype of the models, e.g. "float32".
        on_progress: called with the progress of the stage; does nothing outside the main process.
        log: called with a line of text; does nothing outside the main process.
    """

    config: LoopConfig
    inputs: LoopInputs
    models: ModelPair
    run_dir: RunDir
    processes: Processes
    dtype: str
    on_progress: Callable[[Progress], None]
    log: Callable[[str], None]

    def stage_seed(self, stage: Stage) -> int:
        """Return the random seed of a stage: different for each stage, the same in every run."""
        return stage_seed(self.config, stage)


def stage_seed(config: LoopConfig, stage: Stage) -> int:
    """Return the random seed of a stage: different for each stage, the same in every run."""
    return config.seed * STAGE_SEEDS + stage.number
