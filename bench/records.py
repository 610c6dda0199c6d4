"""The format of all timings: a JSON file of rows, one per case, size, dtype, inputs and kind of machine.

    {"schema": 1, "rows": [{
        "suite": "kernels",              # kernels, scoring, training, or device (a GPU)
        "case": "info_nce", "family": "contrastive",
        "size": "large", "shape": {"n": 4096, "d": 512},
        "dtype": "float32", "inputs": "random",
        "machine": {"cpu": ..., "instruction_set": "AVX2", "threads": 2, "device": "cpu", "versions": {...}, ...},
        "runs": {
            "products_3": {"role": "floor", "phase": "forward+backward", "samples_s": [...]},
            "ours": {"role": "ours", "phase": "forward+backward", "samples_s": [...], "peak_mb": 75.0},
            "ours_again": {"role": "again", ...},               # the same code timed a second time
            "open_clip": {"role": "peer", ...},
            "liger": {"role": "peer", "phase": ..., "missing": "needs a GPU"}},
        "targets": [{"run": "ours", "against": "products_3", "quantity": "time", "must": 1.06, "goal": 1.03}],
        "differing": [],                 # runs whose results differ from eager torch's
        "facts": {"tokens": 1655}}]}     # other numbers of a suite

Samples are seconds. Runs of a row with equally many samples took turns, so their samples are paired. Medians, ratios
and verdicts are computed from the samples by bench/ratios.py when a table or a picture is made; no file holds them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from main_align.data.atomic import atomic_write

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"
SUITES = ("kernels", "scoring", "training")
"""The suites that have a file of rows in RESULTS."""
IDENTITY = ("suite", "case", "size", "dtype", "inputs")
MACHINE = ("device", "instruction_set", "threads")
"""The fields of a machine that make its kind. Rows of one kind replace each other; ratios are compared within it."""
FIELDS = (*IDENTITY, "family", "shape", "machine", "runs", "targets", "differing", "facts")
"""The fields of a row. Others are kept and not read."""

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file; none if it does not exist.

    Args:
        path: a file in the format above.

    Raises:
        SystemExit: the file cannot be read or has another format.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: not a file of results ({error})") from None
    if not isinstance(found, dict):
        raise SystemExit(f"{path}: not a file of results, which holds an object")
    if found.get("schema") != SCHEMA:
        raise SystemExit(f"{path}: schema {found.get('schema')} instead of {SCHEMA}; measure again into a new file")
    rows = found.get("rows")
    if not isinstance(rows, list):
        raise SystemExit(f"{path}: no list of rows")
    for number, row in enumerate(rows, 1):
        if lacking := [name for name in FIELDS if name not in row]:
            raise SystemExit(f"{path}: row {number} has no {', '.join(lacking)}")
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace a file; a reader sees the old rows or the new ones.

    Args:
        path: the file. Missing folders are created.
        rows: all rows of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)  # one line a row, so that a diff shows which were measured
    with atomic_write(path) as partial:
        partial.write_text(f'{{"schema": {SCHEMA}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def rounded(seconds: Iterable[float]) -> list[float]:
    """Return samples as rows hold them, with four digits."""
    return [float(f"{sample:.4g}") for sample in seconds]


def kind_of(machine: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what machines of one kind have in common."""
    return tuple(machine[field] for field in MACHINE)


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from all others of a file."""
    return (*(row[field] for field in IDENTITY), *kind_of(row["machine"]))


def merged(rows: Iterable[Row], new: Row) -> list[Row]:
    """Return the rows with `new` in the place of the row with the same key, or at the end."""
    out = list(rows)
    places = [place for place, row in enumerate(out) if key_of(row) == key_of(new)]
    if places:
        out[places[0]] = new
    else:
        out.append(new)
    return out


def shape_text(row: Mapping[str, Any]) -> str:
    """Return the shape as a table shows it: "N=4096 D=512"."""
    return " ".join(f"{name.upper() if len(name) == 1 else name}={size}" for name, size in row["shape"].items())


def place_text(machine: Mapping[str, Any]) -> str:
    """Return where a row was measured in a word or two: the instruction set of a CPU, or the GPU."""
    return machine["instruction_set"] if machine["device"] == "cpu" else machine["device"]


def threads_text(machine: Mapping[str, Any]) -> str:
    """Return the number of threads: "1 thread", "2 threads"."""
    return f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"


def machine_text(machine: Mapping[str, Any]) -> str:
    """Describe a machine: "2 threads of AMD EPYC (AVX2)"."""
    where = f"{threads_text(machine)} of {machine['cpu']} ({machine['instruction_set']})"
    return where if machine["device"] == "cpu" else f"{machine['device']}, {where}"
