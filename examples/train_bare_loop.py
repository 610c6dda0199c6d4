"""Train two encoders with MutualAlignmentLoss in a plain PyTorch loop: random points and their noisy copies.

python examples/train_bare_loop.py
"""

from __future__ import annotations

import argparse

import torch
from main_align.training import AlignmentTerms, MutualAlignmentLoss
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()

    torch.manual_seed(0)
    encode_x, encode_y = (nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2))
    alignment = MutualAlignmentLoss(AlignmentTerms(semantic_weight=1.0, intentional_weight=0.1, structural_weight=1.0))
    optimizer = torch.optim.AdamW([*encode_x.parameters(), *encode_y.parameters()], lr=3e-3)
    mix = torch.randn(32, 32) / 32**0.5
    for step in range(1, options.steps + 1):
        x = torch.randn(options.batch, 32)
        y = x @ mix + 0.3 * torch.randn_like(x)
        loss, metrics = alignment(encode_x(x), encode_y(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == options.steps:
            print(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()), flush=True)


if __name__ == "__main__":
    main()
