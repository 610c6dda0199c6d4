"""What kernels and their functions are handed as one: tensors where a kernel is launched, in it addresses, or values in
registers. What is None is not compiled in."""

from typing import Any, NamedTuple


class Scoring(NamedTuple):
    """How a raw product becomes a score: see ScoreMap in interface.py."""

    scale: Any  # an address, which a kernel replaces by the value: the host need not know it
    cap: Any
    bias: Any  # [columns]


class Where(NamedTuple):
    """Which entries are targets, and which take part: see Mask in interface.py."""

    targets: Any  # [rows]
    row_ids: Any
    column_ids: Any
    keep_target: Any  # a constexpr: a bool is one that only the running kernel knows


class Sums(NamedTuple):
    """Row or column accumulators, see RowAccumulators: running ones, partial ones, or those of one tile."""

    maximum: Any
    total: Any
    weighted: Any
    rank: Any
    logits: Any
    softplus: Any
    clipped: Any


class Terms(NamedTuple):
    """The terms of dL/ds, see ScoreGradTerms in interface.py."""

    row_lse_grad: Any
    row_lse_high: Any
    row_lse_low: Any
    column_lse_grad: Any
    column_lse_high: Any
    column_lse_low: Any
    target_grad: Any
    softplus_grad: Any
    row_sum_grad: Any
    column_sum_grad: Any
    neg_entropy_grad: Any


class Entries(NamedTuple):
    """Where a tile lies: its rows i and columns j, some of which may be beyond the scores' ``rows`` and ``columns``."""

    i: Any  # [BM]
    j: Any  # [BN]
    rows: Any
    columns: Any
