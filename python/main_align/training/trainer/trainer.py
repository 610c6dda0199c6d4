"""MutualAlignmentTrainer: SFTTrainer with mutual alignment."""

from __future__ import annotations

from trl import SFTTrainer

from .mixin import AlignmentMixin
from .model_card import PAPER


class MutualAlignmentTrainer(AlignmentMixin, SFTTrainer):  # type: ignore[misc]
    """Fine-tunes a causal language model on pairs, forward, backward and aligned (MAIN, arXiv 2504.12913)::

        args = MutualAlignmentConfig(output_dir="out")
        MutualAlignmentTrainer(model="smollm2", args=args, train_dataset=ds).train()

    Takes what SFTTrainer takes (`peft_config` included); see AlignmentMixin for what is different.
    """

    _tag_names = ["trl", "sft", "mutual-alignment"]  # noqa: RUF012
    _name = "MutualAlignment"
    _paper = PAPER
