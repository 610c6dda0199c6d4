"""The stages of a run, in order, and which earlier stage each of them reads.

warm up both directions on the seeds          (unless warmup_epochs is 0)
round k:  reverse model writes instructions for the seed responses
          forward model trains on seeds and (written instruction, seed response)
          forward model writes responses to the seed instructions
          reverse model trains on seeds and (seed instruction, written response)
augment:  reverse model writes instructions for the unlabelled responses      (where there are any)
filter:   both models score what was augmented; the best pairs are kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .config import Direction, LoopConfig

Work = Literal["train", "synthesise", "augment", "filter"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. The names are those of other stages, None for what no stage made.

    `forward` and `reverse` made the models as they are when this stage begins (None: the base);
    `pairs` made the synthetic pairs it reads (None: it reads the seeds alone).
    """

    name: str  # of its folder, for one 03-round1-train-forward
    number: int
    work: Work
    direction: Direction  # the model that is trained or that writes; of the filter, forward
    round: int  # 0: before the first
    forward: str | None
    reverse: str | None
    pairs: str | None

    def start(self, direction: Direction) -> str | None:
        """The stage that made this direction's model as it is when this stage begins."""
        return self.forward if direction == "forward" else self.reverse


def make_plan(config: LoopConfig) -> list[Stage]:
    """The stages of `config`, in the order in which they run."""
    plan: list[Stage] = []
    models: dict[Direction, str | None] = {"forward": None, "reverse": None}

    def add(title: str, work: Work, direction: Direction, round_: int, pairs: str | None = None) -> str:
        name = f"{len(plan):02}-{title}"
        plan.append(Stage(name, len(plan), work, direction, round_, models["forward"], models["reverse"], pairs))
        if work == "train":
            models[direction] = name
        return name

    if config.warmup_epochs:
        add("warmup-forward", "train", "forward", 0)
        add("warmup-reverse", "train", "reverse", 0)
    for round_ in range(1, config.rounds + 1):
        written = add(f"round{round_}-synthesise-instructions", "synthesise", "reverse", round_)
        add(f"round{round_}-train-forward", "train", "forward", round_, written)
        written = add(f"round{round_}-synthesise-responses", "synthesise", "forward", round_)
        add(f"round{round_}-train-reverse", "train", "reverse", round_, written)
    if config.unlabelled is not None:
        written = add("augment", "augment", "reverse", config.rounds)
        add("filter", "filter", "forward", config.rounds, written)
    return plan
