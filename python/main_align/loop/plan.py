"""Stage and make_plan: the stages of a run in order, and the earlier stages each one reads.

warm up both directions on the seed pairs     (unless warmup_epochs is 0)
round k:  the reverse model generates instructions for the seed responses
          the forward model trains on seed pairs and (generated instruction, seed response)
          the forward model generates responses to the seed instructions
          the reverse model trains on seed pairs and (seed instruction, generated response)
augment:  the reverse model generates instructions for unpaired_responses     (if given)
filter:   both models score the augmented pairs; the best are kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .config import Direction, LoopConfig

Work = Literal["train", "generate", "augment", "filter"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run.

    Args:
        name: name of the stage's folder, e.g. 03-round1-train-forward.
        number: position in the plan, from 0.
        work: kind of stage.
        direction: the model that trains or generates; "forward" for the filter.
        round: number of the round; 0 is the warm-up.
        forward_stage: stage that trained the forward model as it is when this stage starts. None: the base model.
        reverse_stage: the same for the reverse model.
        pairs_stage: stage that generated the pairs this stage reads. None: it reads no generated pairs.
    """

    name: str
    number: int
    work: Work
    direction: Direction
    round: int
    forward_stage: str | None
    reverse_stage: str | None
    pairs_stage: str | None

    def model_stage(self, direction: Direction) -> str | None:
        """Return the stage that trained this direction's model as it is when this stage starts."""
        return self.forward_stage if direction == "forward" else self.reverse_stage


def make_plan(config: LoopConfig) -> list[Stage]:
    """Return the stages of a run in the order in which they run."""
    plan: list[Stage] = []
    latest: dict[Direction, str | None] = {"forward": None, "reverse": None}

    def add(title: str, work: Work, direction: Direction, round_: int, pairs_stage: str | None = None) -> str:
        name = f"{len(plan):02}-{title}"
        stage = Stage(name, len(plan), work, direction, round_, latest["forward"], latest["reverse"], pairs_stage)
        plan.append(stage)
        if work == "train":
            latest[direction] = name
        return name

    if config.warmup_epochs:
        add("warmup-forward", "train", "forward", 0)
        add("warmup-reverse", "train", "reverse", 0)
    for round_ in range(1, config.rounds + 1):
        generated = add(f"round{round_}-generate-instructions", "generate", "reverse", round_)
        add(f"round{round_}-train-forward", "train", "forward", round_, generated)
        generated = add(f"round{round_}-generate-responses", "generate", "forward", round_)
        add(f"round{round_}-train-reverse", "train", "reverse", round_, generated)
    if config.unpaired_responses is not None:
        generated = add("augment", "augment", "reverse", config.rounds)
        add("filter", "filter", "forward", config.rounds, generated)
    return plan
