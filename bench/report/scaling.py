"""exponents: how time and memory grow with each dimension, as exponents, beside the expected ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..cases import CASES
from ..ratios import median_of
from ..records import kind_of, place_text, threads_text
from .tables import NONE, table

TIME, MEMORY = ("time: expected", "ours", "products", "eager"), ("memory: expected", "ours", "eager")
COLUMNS = ("case", "from – to", "on", *TIME, *MEMORY)


class Curve(NamedTuple):
    """One quantity of one run over the sizes of a dimension."""

    sizes: list[int]
    values: list[float]

    def exponent(self) -> float | None:
        """Return the slope of the logarithms by least squares; None for fewer than three sizes."""
        if len(self.sizes) < 3:
            return None
        return statistics.linear_regression([math.log(x) for x in self.sizes], [math.log(y) for y in self.values]).slope


class Scaled(NamedTuple):
    """The rows of one case, dimension, dtype and kind of machine, sorted by size."""

    case: str
    dimension: str
    dtype: str
    machine: Mapping[str, Any]
    rows: list[Mapping[str, Any]]

    def time(self, run: str) -> Curve:
        """Return the median seconds of a run by size, where it was measured."""
        found = [(row["shape"][self.dimension], row["runs"].get(run, {})) for row in self.rows]
        kept = [(size, median_of(got)) for size, got in found if got.get("samples_s")]
        return Curve([size for size, _ in kept], [value for _, value in kept])

    def memory(self, run: str) -> Curve:
        """Return the peak megabytes of a run by size, where it was measured and at least one."""
        found = [(row["shape"][self.dimension], row["runs"].get(run, {}).get("peak_mb") or 0.0) for row in self.rows]
        kept = [(size, value) for size, value in found if value >= 1]
        return Curve([size for size, _ in kept], [value for _, value in kept])


def scaled(rows: Iterable[Mapping[str, Any]]) -> list[Scaled]:
    """Return the sweeps among rows."""
    found: dict[tuple[Any, ...], Scaled] = {}
    for row in rows:
        dimension, equals, _ = row["size"].partition("=")
        if equals and row["case"] in CASES and dimension in CASES[row["case"]].sweeps:
            key = (row["case"], dimension, row["dtype"], *kind_of(row["machine"]))
            found.setdefault(key, Scaled(*key[:3], row["machine"], [])).rows.append(row)
    for entry in found.values():
        entry.rows.sort(key=lambda row, entry=entry: row["shape"][entry.dimension])
    return list(found.values())


def floor_of(entry: Scaled) -> str:
    """Return the floor that the first target of the case is measured against."""
    return next(t["against"] for t in entry.rows[0]["targets"] if t["run"] == "ours")


def exponents(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of exponents as Markdown."""
    body = []
    for entry in scaled(rows):
        sweep = CASES[entry.case].sweeps[entry.dimension]
        sizes = entry.time("ours").sizes
        times = [entry.time(run).exponent() for run in ("ours", floor_of(entry), "eager")]
        memory = [entry.memory(run).exponent() for run in ("ours", "eager")]
        fixed = " ".join(f"{name.upper()}={size}" for name, size in sweep.shape.items())
        body.append(
            [
                f"`{entry.case}`",
                f"{entry.dimension.upper()}={sizes[0]} – {sizes[-1]}, {fixed}",
                f"{entry.dtype} {place_text(entry.machine)}, {threads_text(entry.machine)}",
                f"{sweep.time:g}",
                *map(_number, times),
                f"{sweep.memory:g}",
                *map(_number, memory),
            ]
        )
    return table(COLUMNS, body)


def _number(exponent: float | None) -> str:
    return NONE if exponent is None else f"{exponent:.2f}"
