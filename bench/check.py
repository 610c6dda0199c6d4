"""Compare a run with the results of the same kind of machine: which ratios have become worse?

    python -m bench kernels --size large -o out/kernels.json
    python -m bench check out/kernels.json                                   # against bench/results/
    python -m bench check out/kernels.json --against other/kernels.json

Only ratios are compared: of ours to its reference, within one row. A machine is of the same kind if device, instruction
set and number of threads are equal. A ratio is worse if it is higher by more than --tolerance and, for times, by more
than the same code timed twice, in both runs. The exit status is 1 if one is worse, 2 if nothing could be compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .command import command_parser
from .ratios import noise_of, ratio_of
from .records import RESULTS, key_of, read_rows

TOLERANCE = 0.05
Row = Mapping[str, Any]


class Change(NamedTuple):
    """A ratio in two runs."""

    what: str
    before: float
    now: float
    noise: float

    def worse(self, tolerance: float) -> bool:
        """Return True if the ratio is higher by more than the tolerance and the noise."""
        return self.now > self.before * (1 + max(tolerance, self.noise))


def changes(before: Sequence[Row], now: Sequence[Row]) -> Iterator[Change]:
    """Yield the ratio of each target that both runs measured on the same kind of machine."""
    known = {key_of(row): row for row in before}
    for row in now:
        old = known.get(key_of(row))
        if old is None or old["shape"] != row["shape"]:
            continue
        time_noise = max(noise_of(old) or 0.0, noise_of(row) or 0.0)
        for target in row["targets"]:
            what = (target["run"], target["against"], target["quantity"])
            was, got = ratio_of(old, *what), ratio_of(row, *what)
            if was is not None and got is not None:
                is_memory = target["quantity"] == "memory"
                inputs = "" if row["inputs"] == "random" else f" {row['inputs']}"
                name = f"{row['case']} {row['size']} {row['dtype']}{inputs} {what[0]}/{what[1]}"
                yield Change(
                    f"{name}{' memory' if is_memory else ''}", was.median, got.median, 0.0 if is_memory else time_noise
                )


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise SystemExit(f"{path} does not exist")
    return read_rows(path) or sys.exit(f"{path}: no rows")


def main(words: list[str] | None = None) -> int:
    parser = command_parser("check", __doc__)
    parser.add_argument("run", type=Path, help="file of a suite, as its -o writes it")
    parser.add_argument("--against", type=Path, help="file to compare with (default: that suite's in bench/results/)")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share that is no change (default 0.05)")
    chosen = parser.parse_args(words)
    try:
        now = _rows(chosen.run)
        before = _rows(chosen.against or RESULTS / f"{now[0]['suite']}.json")
    except SystemExit as refusal:
        print(refusal, file=sys.stderr)
        return 2
    found = list(changes(before, now))
    if not found:
        print("nothing to compare: no row of the same case, size and kind of machine", file=sys.stderr)
        return 2
    for change in found:
        mark = "  WORSE" if change.worse(chosen.tolerance) else ""
        print(f"{change.before:.3f} -> {change.now:.3f}  (noise {change.noise:.3f})  {change.what}{mark}")
    worse = sum(change.worse(chosen.tolerance) for change in found)
    print(f"{worse} of {len(found)} ratios are worse")
    return 1 if worse else 0
