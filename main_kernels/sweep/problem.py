"""Problem, make_problem: the score matrix that a sweep tiles, and the rows and entries of it that count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .. import checks
from ..backends import Backend, ScoreMap, get_backend
from ..backends.accumulators import select_rows
from ..backends.interface import FusedKernels
from ..backends.structs import MAX_SCORE_BOUND, Mask
from ..backends.workspace import WORKSPACE
from .operand import Operand
from .plan import Plan, make_plan
from .signatures import SweepArgs, SweepGradArgs

_ROW_ALIGNMENT = 16  # columns: rows of 16-bit gradients then start at addresses that cuBLAS prefers

_SMALL_SCORES = 4096  # entries; below this the single-exp kernels save no time, and one score is its own log-sum-exp


@dataclass
class Problem:
    """S[N, M] = map(Q Kᵀ), its targets and mask, and the backend and plan that compute it."""

    query: Tensor  # [N, D], without ignored rows
    key: Tensor  # [M, D]
    score_map: ScoreMap
    targets: Tensor | None  # int64 [N], all in range
    mask: Mask | None
    plan: Plan
    backend: Backend
    fused: FusedKernels | None  # those of the backend, if they support this problem and no score is kept

    @cached_property
    def matmul_operands(self) -> tuple[Operand, Operand]:
        """Query and key in the compute dtype."""
        return Operand.of(self.query, self.plan.compute), Operand.of(self.key, self.plan.compute)

    @cached_property
    def fused_operands(self) -> tuple[Tensor, Tensor]:
        """Query and key in the memory layout of the fused kernels, which may append columns of zeros."""
        assert self.fused is not None
        return self.fused.aligned(self.query), self.fused.aligned(self.key)

    @cached_property
    def valid_columns(self) -> Tensor | int:
        """Number of columns that the bias does not exclude."""
        return self.score_map.valid_column_count(self.key.shape[0])

    def score_buffer(self) -> Tensor:
        """Allocate the raw scores of one chunk."""
        return self._chunk(self.plan.scores)

    def gradient_buffer(self, *, separate: bool) -> Tensor | None:
        """Allocate the gradient of one chunk of scores; None if it is not ``separate`` and replaces the scores."""
        return self._chunk(self.plan.compute) if separate or self.plan.compute != self.plan.scores else None

    def _chunk(self, dtype: torch.dtype) -> Tensor:
        rows = min(self.plan.rows, self.query.shape[0])
        return score_matrix(rows, self.key.shape[0], dtype, self.query.device, self.backend)

    def chunks(self) -> Iterator[slice]:
        """Yield the row ranges of the chunks."""
        for begin in range(0, self.query.shape[0], self.plan.rows):
            yield slice(begin, min(begin + self.plan.rows, self.query.shape[0]))

    def raw_scores(self, rows: slice, out: Tensor) -> Tensor:
        """Compute the raw scores of a chunk into out[c, M]."""
        query, key = self.matmul_operands
        return key.scores(query.rows(rows), out)

    def targets_of(self, rows: slice) -> Tensor | None:
        return None if self.targets is None else select_rows(self.targets, rows)

    def mask_of(self, rows: slice) -> Mask | None:
        return None if self.mask is None else self.mask[rows]

    def allows_single_exp(self) -> bool:
        """Return True if the single-exp kernels apply to scores that are small enough."""
        is_plain_map = self.score_map.bias is None and not self.score_map.softcap
        keeps_targets = self.targets is not None and (self.mask is None or self.mask.keep_target)
        is_small = self.query.shape[0] * self.key.shape[0] < _SMALL_SCORES
        return self.backend.single_exp is not None and is_plain_map and keeps_targets and not is_small

    def suits_single_exp(self) -> bool:
        """Return True if the single-exp kernels apply: every |score| is known to be small enough."""
        kernels = self.backend.single_exp
        if kernels is None or not self.allows_single_exp():
            return False
        norms = [max([kernels.largest_norm(block) for _, block in x.blocks()]) for x in self.matmul_operands]
        bound = 1.01 * float(self.score_map.scale) * norms[0] * norms[1]  # 1.01: the products are rounded
        return bound <= MAX_SCORE_BOUND


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over operands of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plan_of(args: SweepArgs | SweepGradArgs) -> Plan:
    """Return the plan of a sweep, the same in the forward and in the backward."""
    query, saved = args.query, args.gradient == "saved"
    return make_plan(query.shape[0], args.key.shape[0], query.shape[1], query.dtype, query.device.type, saved=saved)


def score_matrix(rows: int, columns: int, dtype: torch.dtype, device: torch.device, backend: Backend) -> Tensor:
    """Allocate raw scores [rows, columns]. On a backend with fused kernels, rows start at aligned addresses."""
    pitch = columns if backend.fused is None else -(-columns // _ROW_ALIGNMENT) * _ROW_ALIGNMENT
    buffer = WORKSPACE.acquire((rows, pitch), dtype, device)
    if pitch == columns:
        return buffer
    if rows:
        buffer[:, columns:] = 0  # some products read the padding between the rows and multiply it by zero
    return buffer[:, :columns]


def make_problem(args: SweepArgs | SweepGradArgs, rows: Tensor | None) -> Problem:
    """Build the problem of the rows with the indices ``rows``. None: of all rows."""
    plan, mask = _plan_of(args), _make_mask(args)
    query, targets = args.query, args.targets
    if rows is not None and targets is not None:
        query, targets = query[rows], targets[rows]
        mask = None if mask is None else mask[rows]
    bias, accumulator = args.bias, accumulator_dtype(query.dtype)
    is_uniform = bias is not None and bias.dim() == 0
    if isinstance(args, SweepGradArgs) and args.scale_grad.numel() and not args.bias_grad.numel():
        is_uniform = False  # the bias' part of the scale's gradient is computed from the gradient of the bias
    if bias is not None:
        bias = bias.to(accumulator).expand(args.key.shape[0]).contiguous()
    scale = args.scale.detach()
    scale = scale if scale.dtype == accumulator else scale.to(accumulator)
    backend = get_backend(args.backend)
    keeps_no_scores = args.gradient in ("none", "recomputed")
    fused = backend.fused if keeps_no_scores and backend.fused and backend.fused.supports(query.dtype) else None
    return Problem(
        query=query,
        key=args.key,
        score_map=ScoreMap(scale, args.softcap, bias, is_uniform),
        targets=None if targets is None else targets.contiguous(),
        mask=mask,
        plan=plan,
        backend=backend,
        fused=fused,
    )


def valid_mask(args: SweepArgs | SweepGradArgs) -> Tensor | None:
    """Return bool [N], False for ignored rows. None if no row can be ignored."""
    if args.targets is None or args.ignore_index is None:
        return None
    return args.targets != args.ignore_index


def valid_rows(mask: Tensor | None) -> Tensor | None:
    """Return the indices of the rows where mask[N] is True. None: all of them.

    Synchronises with a CUDA device. Skipping the products of masked rows saves more time than that costs.
    """
    if mask is None:
        return None
    if mask.device.type != "cuda":
        return None if bool(mask.all()) else mask.nonzero()[:, 0]
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "rows may be masked or ignored, and their number is unknown while a CUDA graph is captured: select the rows"
            " that count before the call, then pass ignore_index=None or no mask"
        )
    rows = mask.nonzero()[:, 0]
    return None if rows.shape[0] == mask.shape[0] else rows


def count_true(mask: Tensor | None, rows: int) -> int:
    """Return the number of unmasked rows; all ``rows`` if the mask has no readable values."""
    return rows if mask is None or not checks.has_readable_values(mask) else int(mask.sum())


def _make_mask(args: SweepArgs | SweepGradArgs) -> Mask | None:
    """Return the mask, with ids of 32 bits."""
    rows, columns, count = args.row_ids, args.column_ids, args.key.shape[0]
    if rows is None or columns is None:
        return None if args.keep_target or args.targets is None else Mask(None, None, False)
    ids, unused_id = _compact_ids(torch.cat([rows, columns]))
    padded = ids.new_full((count,), unused_id)
    padded[: columns.shape[0]] = ids[rows.shape[0] :]
    return Mask(ids[: rows.shape[0]], padded, args.keep_target)


def _compact_ids(ids: Tensor) -> tuple[Tensor, int]:
    """Map int64 ids to int32 such that equal ids stay equal, and return an id that does not occur."""
    if ids.device.type == "cuda":  # the index of the first equal id in sorted order, without synchronising
        return torch.searchsorted(ids.sort()[0], ids).to(torch.int32), -1
    limits = torch.iinfo(torch.int32)
    if not ids.numel():
        return ids.to(torch.int32), limits.min
    low, high = ids.aminmax()
    if int(low) > limits.min and int(high) <= limits.max:
        return ids.to(torch.int32), limits.min
    return ids.unique(return_inverse=True)[1].to(torch.int32), -1
