"""Scoring, Masking, Sums, Terms, Losses, Entries, Side and Pair: the structs that kernels and their functions exchange.

A field is a tensor where a kernel is launched, and in the kernel an address or a value in registers. A field that is
None is not compiled in.
"""

from typing import Any, NamedTuple


class Scoring(NamedTuple):
    """The map from raw products to scores, see ScoreMap in structs.py."""

    scale: Any  # an address, which a kernel replaces by the value: the host need not know it
    cap: Any
    bias: Any  # [columns]
    uniform_bias: Any  # the bias of every column instead, an address like the scale


class Masking(NamedTuple):
    """The targets, and the ids of the entries that are masked, see Mask in structs.py."""

    targets: Any  # [rows]
    row_ids: Any
    column_ids: Any
    keep_target: Any  # None: targets are masked. What a function returns is a constant only if it is None


class Sums(NamedTuple):
    """Row or column accumulators, see RowAccumulators: running ones, partial ones, or those of one tile."""

    maximum: Any
    total: Any
    weighted: Any
    rank: Any
    logits: Any
    softplus: Any
    sigmoid: Any
    clipped: Any


class Terms(NamedTuple):
    """The terms of dL/ds, see ScoreGradTerms in structs.py."""

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


class Losses(NamedTuple):
    """The terms of dL/ds for a loss of each row, see LossTerms in structs.py."""

    row_lse_grad: Any
    row_lse_slope: Any
    target_grad: Any
    row_sum_grad: Any


class Entries(NamedTuple):
    """The position of a tile: its rows i and columns j, some of which may exceed the scores' ``rows``, ``columns``."""

    i: Any  # [BLOCK_M]
    j: Any  # [BLOCK_N]
    rows: Any
    columns: Any


class Side(NamedTuple):
    """One of the two score matrices of a divergence, and where its gradient goes; rows are ``pitch`` apart."""

    raw: Any  # [rows, columns]
    pitch: Any
    grad: Any  # None: no gradient
    grad_pitch: Any


class Pair(NamedTuple):
    """Running sums of two rows of scores p and q. x = (p - p_top) - (q - q_top) is the logarithm of their ratio but for
    a constant."""

    p_top: Any  # the largest score
    q_top: Any
    p_total: Any  # sum of exp(p - p_top)
    q_total: Any
    moment: Any  # sum of exp(p - p_top) x
    excess: Any  # sum of exp(p - p_top) (exp(-x) - 1 + x)
