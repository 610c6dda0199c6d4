"""The ops against bare matrix products of the same shape and against the peers that run on a CPU.

    python bench/kernels.py -o bench/results/kernels.json

Every row is one interleaved run: the products (torch.mm into buffers made beforehand), eager torch, torch.compile,
torch's own linear_cross_entropy, and ours. Ratios are taken within the row. Peak memory is that of a fresh process,
over the inputs and the gradients.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import interleaved, machine, peak_over, ratio, summary
from torch import Tensor

from main_kernels import info_nce, token_logprobs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TARGETS = {  # contender -> (floor, the ratio we hold ourselves to)
    ("head", "float32"): {"ours": ("products_3", 1.10), "ours_forward": ("products_1", 1.10)},
    ("head", "bfloat16"): {"ours": ("products_3", 1.20), "ours_forward": ("products_1", 1.10)},
    ("info_nce", "float32"): {"ours_kept": ("products_3", 1.12), "ours_recomputed": ("products_4", 1.12)},
    ("info_nce", "bfloat16"): {"ours_kept": ("products_3", 1.12), "ours_recomputed": ("products_4", 1.12)},
}
Contenders = dict[str, Callable[[], Any]]


def products(left: Tensor, right: Tensor) -> Contenders:
    """The floors: S = left rightᵀ, then S right, then Sᵀ left, in one piece and in chunks of rows. The chunked ones
    are kinder to the cache, so the better of the two is the floor."""
    left, right = left.detach(), right.detach()
    rows, columns = left.shape[0], right.shape[0]
    scores = left.new_empty(rows, columns)
    d_left, d_right = torch.empty_like(left), torch.empty_like(right)

    def run(walks: int, backward: bool, chunk: int) -> None:
        for begin in range(0, rows, chunk):
            part = slice(begin, min(begin + chunk, rows))
            for _ in range(walks):
                torch.mm(left[part], right.T, out=scores[part])
            if backward:
                torch.mm(scores[part], right, out=d_left[part])
                torch.mm(scores[part].T, left[part], out=d_right)

    floors: Contenders = {}
    for chunk, suffix in ((rows, ""), (512, "_chunked")):
        floors[f"products_1{suffix}"] = lambda c=chunk: run(1, False, c)
        floors[f"products_3{suffix}"] = lambda c=chunk: run(1, True, c)
        floors[f"products_4{suffix}"] = lambda c=chunk: run(2, True, c)
    return floors


def backward(*leaves: Tensor) -> Callable[[Callable[[], Tensor]], Callable[[], None]]:
    def wrap(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            loss().backward()

        return run

    return wrap


def head(dtype: torch.dtype, rows: int, width: int, columns: int) -> tuple[Contenders, list[Tensor]]:
    hidden = torch.randn(rows, width).to(dtype).requires_grad_()
    weight = (torch.randn(columns, width) / width**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, columns, (rows,))
    train = backward(hidden, weight)

    def eager() -> Tensor:
        return F.cross_entropy((hidden @ weight.T).float(), targets)

    def forward() -> None:
        with torch.no_grad():
            token_logprobs(hidden, weight, targets)

    compiled = torch.compile(eager)
    return {
        "ours_forward": forward,
        "ours": train(lambda: -token_logprobs(hidden, weight, targets).mean()),
        "eager": train(eager),
        "torch_compile": train(compiled),
        "torch_linear_cross_entropy": train(lambda: F.linear_cross_entropy(hidden, weight, targets)),
    }, [hidden, weight]


def contrast(dtype: torch.dtype, rows: int, width: int, columns: int) -> tuple[Contenders, list[Tensor]]:
    query, key = (F.normalize(torch.randn(n, width)).to(dtype).requires_grad_() for n in (rows, columns))
    train = backward(query, key)

    def eager() -> Tensor:
        scores = (query @ key.T).float() / 0.07
        labels = torch.arange(rows)
        return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2

    compiled = torch.compile(eager)
    return {
        "ours_kept": train(lambda: info_nce(query, key)),
        "ours_recomputed": train(lambda: info_nce(query, key, workspace=0)),
        "eager": train(eager),
        "torch_compile": train(compiled),
    }, [query, key]


CASES: dict[str, tuple[Callable[..., tuple[Contenders, list[Tensor]]], list[tuple[int, int, int]]]] = {
    "head": (head, [(2048, 1024, 32000)]),
    "info_nce": (contrast, [(4096, 512, 4096), (8192, 512, 8192)]),
}


def time_case(op: str, dtype: str, shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    contenders, operands = CASES[op][0](DTYPES[dtype], *shape)
    samples = interleaved({**products(*operands), **contenders}, rounds)
    for count in ("products_1", "products_3", "products_4"):  # the floor is the better of whole and chunked
        chunked = samples[f"{count}_chunked"]
        if sum(chunked) < sum(samples[count]):
            samples[count], samples[f"{count}_chunked"] = chunked, samples[count]
    row: dict[str, Any] = {"op": op, "dtype": dtype, "rows": shape[0], "width": shape[1], "columns": shape[2]}
    row["times"] = summary(samples)
    row["ratios"] = {
        name: {"floor": floor, "target": target, **ratio(samples, name, floor)}
        for name, (floor, target) in TARGETS[op, dtype].items()
    }
    row["peak_mb"] = {name: peak_of(op, dtype, shape, name) for name in contenders}
    return row


def peak_of(op: str, dtype: str, shape: tuple[int, int, int], contender: str) -> float:
    spec = json.dumps([op, dtype, shape, contender])
    done = subprocess.run([sys.executable, __file__, "--peak", spec], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(spec: str) -> None:
    op, dtype, shape, contender = json.loads(spec)
    torch.manual_seed(0)
    small, _ = CASES[op][0](DTYPES[dtype], 64, 64, 64)
    small[contender]()  # libraries and thread pools allocate on first use
    contenders, operands = CASES[op][0](DTYPES[dtype], *shape)
    if contender == "torch_compile":
        contenders[contender]()
        for leaf in operands:
            leaf.grad = None
    peak = peak_over(contenders[contender], lambda: sum(x.grad.nbytes for x in operands if x.grad is not None))
    print(round(peak, 1))


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['op']} {row['dtype']} rows={row['rows']} width={row['width']} columns={row['columns']}")
    for name, times in row["times"].items():
        peak = row["peak_mb"].get(name)
        memory = f"  peak {peak:8.1f} MB" if peak is not None else ""
        print(f"  {name:28s} median {times['median_s'] * 1e3:8.1f} ms  best {times['min_s'] * 1e3:8.1f} ms{memory}")
    for name, r in row["ratios"].items():
        print(
            f"  {name} / {r['floor']}: {r['of_medians']:.3f} by medians, {r['of_minima']:.3f} by minima,"
            f" {r['paired_median']:.3f} paired (target {r['target']})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, help="write all samples as JSON here")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--op", choices=list(CASES), help="only this op")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak)
        return
    report: dict[str, Any] = {"machine": machine(), "rows": []}
    for op, (_, shapes) in CASES.items():
        if arguments.op not in (None, op):
            continue
        for shape in shapes:
            for dtype in DTYPES:
                row = time_case(op, dtype, shape, arguments.rounds)
                report["rows"].append(row)
                show(row)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
