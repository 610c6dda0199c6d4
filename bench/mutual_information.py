"""Compare every bound on mutual information with the truth, on correlated Gaussians with their optimal critic.

    python -m bench mutual-information                         # writes bench/results/mutual_information.{png,json}
    python -m bench mutual-information --sizes 256 --repeats 5  # a quick look

The plot shows: InfoNCE follows the truth up to log N. DV and NWJ are unbiased for small I, but their variance grows
exponentially with I. SMILE has less variance and a bias that remains. CLUB is an upper bound. JS is not in units of I;
it only ranks critics. NWJ gets its own optimal critic, 1 + the log density ratio; the others get the log density ratio.
TUBA without a baseline is then equal to NWJ, and their curves coincide.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from main_kernels import mutual_information, mutual_information_bounds

from .command import command_parser, output_file
from .gaussians import Gaussians
from .measure import machine

RESULTS = Path(__file__).parent / "results"


def sampled(gaussians: Gaussians, pairs: int, repeats: int, clip: float) -> dict[str, list[float]]:
    """Return the values of every estimator in `repeats` fresh batches."""
    generator = torch.Generator().manual_seed(0)
    values: dict[str, list[float]] = {}
    for _ in range(repeats):
        query, key = gaussians.pairs(pairs, generator)
        bounds = mutual_information_bounds(query, key, clip=clip)
        bounds["nwj"] = mutual_information(gaussians.plus_one(query), key, estimator="nwj")
        for name, value in bounds.items():
            values.setdefault(name, []).append(value.item())
    return values


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return mean and standard deviation of every estimator at every point of the grid."""
    grid = [
        arguments.lowest + (arguments.highest - arguments.lowest) * i / (arguments.points - 1)
        for i in range(arguments.points)
    ]
    rows = []
    for pairs in arguments.sizes:
        for information in grid:
            print(f"\rN = {pairs}, I = {information:.2f} nats ", end="", file=sys.stderr, flush=True)
            values = sampled(Gaussians(information, arguments.dimensions), pairs, arguments.repeats, arguments.clip)
            for name, sample in values.items():
                rows.append(
                    {
                        "pairs": pairs,
                        "information": round(information, 4),
                        "estimator": name,
                        "mean": statistics.fmean(sample),
                        "std": statistics.stdev(sample),
                    }
                )
    print(file=sys.stderr)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot estimates against the truth, one panel per batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted({row["pairs"] for row in rows})
    figure, axes = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 4.5), sharey=True, squeeze=False)
    for axis, pairs in zip(axes[0], sizes, strict=True):
        truth = sorted({row["information"] for row in rows})
        axis.plot(truth, truth, "k--", linewidth=1, label="truth")
        axis.axhline(math.log(pairs), color="grey", linestyle=":", linewidth=1, label="log N")
        for name in dict.fromkeys(row["estimator"] for row in rows):
            curve = [row for row in rows if row["pairs"] == pairs and row["estimator"] == name]
            x, mean, std = ([row[field] for row in curve] for field in ("information", "mean", "std"))
            (line,) = axis.plot(x, mean, label=name)
            low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.set(title=f"N = {pairs}", xlabel="true mutual information (nats)", ylim=(-2, 1.3 * truth[-1]))
    axes[0][0].set_ylabel("estimate (nats), mean ± std over batches")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(words: list[str] | None = None) -> int:
    parser = command_parser("mutual-information", __doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 256, 1024], help="batch sizes N (default 64 256 1024)"
    )
    parser.add_argument("--repeats", type=int, default=20, help="batches per point, at least 2 (default 20)")
    parser.add_argument("--dimensions", type=int, default=4, help="dimensions of x and of y (default 4)")
    parser.add_argument("--lowest", type=float, default=0.5, help="smallest I, nats (default 0.5)")
    parser.add_argument("--highest", type=float, default=10.0, help="largest I, nats (default 10)")
    parser.add_argument("--points", type=int, default=20, help="evenly spaced values of I, at least 2 (default 20)")
    parser.add_argument("--clip", type=float, default=5.0, help="clipping of SMILE, nats (default 5)")
    parser.add_argument(
        "-o", "--out", type=output_file, default=RESULTS / "mutual_information", help="output path without suffix"
    )
    arguments = parser.parse_args(words)
    if arguments.repeats < 2 or arguments.points < 2:
        parser.error("--repeats and --points must be at least 2")
    rows = measure(arguments)
    setup = {name: getattr(arguments, name) for name in ("repeats", "dimensions", "clip")}
    report = {"machine": machine(), **setup, "rows": rows}
    arguments.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, arguments.out.with_suffix(".png"))
    print(f"{arguments.out}.png, {arguments.out}.json")
    return 0
