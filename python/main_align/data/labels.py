"""The input's own true/false field `aligned`, if any: shown beside the scores, which never use it. MAIN's loop leaves
out the seeds that it marks false."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sources.source import Source

FLAGS = {"true": 1.0, "false": 0.0}  # by text, since .csv has no booleans


def aligned_flag(record: Mapping[str, Any] | None) -> float:
    """1, 0, or NaN where the record has no such field."""
    return FLAGS.get(str((record or {}).get("aligned")).lower(), np.nan)


def read_aligned(source: Source) -> NDArray[np.float64] | None:
    """float64[N] of flags; None, without reading on, where the first row has none."""
    first = next(iter(source.rows()), None)
    if first is None or np.isnan(aligned_flag(first.record)):
        return None
    return np.array([aligned_flag(row.record) for row in source.rows()])
