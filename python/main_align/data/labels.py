"""aligned_flag, read_aligned: the optional boolean field `aligned` of the input.

It is shown next to the scores, which never depend on it. MAIN's loop does not train on rows with `aligned: false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sources.source import Source

FLAGS = {"true": 1.0, "false": 0.0}  # by text, since .csv has no booleans


def aligned_flag(record: Mapping[str, Any] | None) -> float:
    """Return 1 for true, 0 for false, and NaN if the record has no such field."""
    return FLAGS.get(str((record or {}).get("aligned")).lower(), np.nan)


def read_aligned(source: Source) -> NDArray[np.float64] | None:
    """Return the flags of all rows, float64[N]. Return None if the first row has none, without reading the others."""
    first = next(iter(source.rows()), None)
    if first is None or np.isnan(aligned_flag(first.record)):
        return None
    return np.array([aligned_flag(row.record) for row in source.rows()])
