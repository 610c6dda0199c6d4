"""Fine-tune on pairs with TRL's trainer and mutual alignment.

python examples/train_sft.py --model smollm2 --data examples/pairs.jsonl --max-steps 20
"""

from __future__ import annotations

import argparse

import torch
from datasets import load_dataset
from main_align import MutualAlignmentConfig, MutualAlignmentTrainer
from peft import LoraConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="hub id, local folder, or smollm2")
    parser.add_argument("--data", default="examples/pairs.jsonl", help="prompt/completion, instruction/response, ...")
    parser.add_argument("--out", default="out/train-sft", help="output folder of the adapter")
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="pairs per step, contrasted with each other")
    options = parser.parse_args()

    pairs = load_dataset("json", data_files=options.data, split="train")
    if "aligned" in pairs.column_names:  # examples/pairs.jsonl has mismatched pairs too
        pairs = pairs.filter(lambda row: row["aligned"])
    args = MutualAlignmentConfig(
        output_dir=options.out,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch,
        learning_rate=2e-4,
        logging_steps=5,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        semantic_weight=0.1,
        intentional_weight=0.01,
        structural_weight=0.1,
    )
    trainer = MutualAlignmentTrainer(
        model=options.model, args=args, train_dataset=pairs, peft_config=LoraConfig(r=16, target_modules="all-linear")
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
