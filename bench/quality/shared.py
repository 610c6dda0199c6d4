"""What the study takes from the benches next door: which machine this is, the seed tasks, the AUC."""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
sys.path.append(str(BENCH))

from measure import machine  # noqa: E402
from scoring import auc, read_seed_tasks  # noqa: E402

__all__ = ["BENCH", "auc", "machine", "read_seed_tasks"]
