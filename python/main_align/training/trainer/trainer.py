"""MutualAlignmentTrainer: SFTTrainer with mutual alignment."""

from __future__ import annotations

from trl import SFTTrainer

from .mixin import AlignmentMixin
from .model_card import PAPER


class MutualAlignmentTrainer(AlignmentMixin, SFTTrainer):  # type: ignore[misc]
    """Fine-tune a causal language model on pairs in both directions, with mutual alignment (MAIN, arXiv 2504.12913).

    ```python
    args = MutualAlignmentConfig(output_dir="out")
    MutualAlignmentTrainer(model="smollm2", args=args, train_dataset=ds).train()
    ```

    The arguments are those of SFTTrainer, `peft_config` included; AlignmentMixin lists the differences.
    """

    _tag_names = ["trl", "sft", "mutual-alignment"]  # noqa: RUF012
    _name = "MutualAlignment"
    _paper = PAPER
