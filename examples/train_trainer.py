"""Fine-tune all weights with transformers' own Trainer and AlignmentMixin.

python examples/train_trainer.py --model ./my-llama --data examples/pairs.jsonl
"""

from __future__ import annotations

import argparse

import torch
from datasets import load_dataset
from main_align import AlignmentArguments, AlignmentMixin
from main_align.models.load import load
from transformers import Trainer, TrainingArguments


class AlignedTrainer(AlignmentMixin, Trainer):
    """transformers' Trainer with mutual alignment; your own Trainer class works the same way."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="hub id, local folder, or smollm2")
    parser.add_argument("--data", default="examples/pairs.jsonl", help="prompt/completion, instruction/response, ...")
    parser.add_argument("--out", default="out/train-trainer", help="output folder of the model")
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="pairs per micro-batch")
    parser.add_argument(
        "--accumulate", type=int, default=1, help="micro-batches per step; their pairs are contrasted with each other"
    )
    options = parser.parse_args()

    loaded = load(options.model)
    pairs = load_dataset("json", data_files=options.data, split="train")
    if "aligned" in pairs.column_names:  # examples/pairs.jsonl has mismatched pairs too
        pairs = pairs.filter(lambda row: row["aligned"])
    args = TrainingArguments(
        output_dir=options.out,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=2e-5,
        logging_steps=5,
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
    )
    trainer = AlignedTrainer(
        loaded.model.train(),
        args,
        train_dataset=pairs,
        processing_class=loaded.tokenizer,
        alignment=AlignmentArguments(
            directions="forward", semantic_weight=0.1, intentional_weight=0.0, structural_weight=0.1
        ),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
