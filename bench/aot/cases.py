"""fused_cases and chunk_cases: every configuration that the backend launches, by name, on meta tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from main_kernels.backends.accumulators import ColumnAccumulators, Lse, ReductionSpec, RowAccumulators
from main_kernels.backends.structs import LossTerms, Mask, ScoreGradTerms, ScoreMap
from main_kernels.backends.triton import TritonBackend

_BACKEND = TritonBackend()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _lse(n: int) -> Lse:
    return Lse(empty(n), empty(n))


WANTS = {
    "rows": ReductionSpec(),
    "both": ReductionSpec(column_lse=True),
    "sums": ReductionSpec(column_lse=True, logit_sums=True),
    "softplus": ReductionSpec(row_lse=False, softplus=True),
    "sigmoid": ReductionSpec(row_lse=False, softplus=True, sigmoid=True),
    "bounds": ReductionSpec(softplus=True, clip=5.0),
    "statistics": ReductionSpec(entropy=True, ranks=True),
    "all rows": ReductionSpec(entropy=True, ranks=True, logit_sums=True, softplus=True, clip=5.0),
    "ranks": ReductionSpec(column_lse=True, ranks=True),
    "everything": ReductionSpec(column_lse=True, entropy=True, ranks=True, logit_sums=True, softplus=True, clip=5.0),
}
"""sets of reductions, by name"""

UPSTREAM: dict[str, Callable[[int, int], ScoreGradTerms]] = {
    "rows": lambda n, m: ScoreGradTerms(row_lse_grad=empty(n), row_lse=_lse(n), target_grad=empty(n)),
    "both": lambda n, m: ScoreGradTerms(
        row_lse_grad=empty(n), row_lse=_lse(n), target_grad=empty(n), column_lse_grad=empty(m), column_lse=_lse(m)
    ),
    "entropy": lambda n, m: ScoreGradTerms(
        row_lse_grad=empty(n), row_lse=_lse(n), target_grad=empty(n), neg_entropy_grad=empty(n)
    ),
    "both sums": lambda n, m: ScoreGradTerms(
        row_lse_grad=empty(n),
        row_lse=_lse(n),
        target_grad=empty(n),
        column_lse_grad=empty(m),
        column_lse=_lse(m),
        row_sum_grad=empty(n),
        column_sum_grad=empty(m),
    ),
    "softplus": lambda n, m: ScoreGradTerms(softplus_grad=empty(n), target_grad=empty(n)),
    "everything": lambda n, m: ScoreGradTerms(
        row_lse_grad=empty(n),
        row_lse=_lse(n),
        target_grad=empty(n),
        column_lse_grad=empty(m),
        column_lse=_lse(m),
        softplus_grad=empty(n),
        row_sum_grad=empty(n),
        column_sum_grad=empty(m),
    ),
}
"""sets of gradients, by name"""

EXTRAS = ("", "ids", "left out", "others", "bias", "softcap")
"""optional inputs of a call; "left out" is ids whose targets are masked, "others" masks the targets alone; with these a
bias is uniform, as that of sigmoid_loss"""


def _name(words: str) -> str:
    """Return the name of a case without the gap of an absent extra."""
    return " ".join(words.split())


def _given(extra: str, n: int, m: int) -> tuple[ScoreMap, Mask | None]:
    """The score map and the mask of a case."""
    everything = extra == "everything"
    biased = everything or "bias" in extra
    score_map = ScoreMap(empty(), 30.0 if extra == "softcap" or everything else 0.0, empty(m) if biased else None)
    if "others" in extra:
        return replace(score_map, is_uniform=biased), Mask(None, None, False)
    masked = everything or "ids" in extra or "left out" in extra
    kept = "left out" not in extra
    ids = Mask(empty(n, dtype=torch.int32), empty(m, dtype=torch.int32), kept) if masked else None
    return replace(score_map, is_uniform=biased and not kept), ids


def fused_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, launch) of the fused walks: every reduction and every weight alone, each extra with the plainest of them,
    all at once, and all of that for sizes that are a multiple of everything and of nothing. float16 operands make the
    same code but for the products: there the plain ones do, and all at once."""
    reduced = [(w, "") for w in WANTS] + [("both", extra) for extra in EXTRAS[1:]] + [("everything", "everything")]
    reduced += [
        ("sigmoid", "bias others"),
        ("sigmoid", "bias left out"),
        ("sigmoid", "bias ids"),
        ("rows", "others"),
        ("ranks", "ids"),
    ]
    weighed = [(u, "") for u in UPSTREAM] + [("both", extra) for extra in EXTRAS[1:]] + [("everything", "everything")]
    weighed += [("softplus", "bias"), ("softplus", "scale"), ("softplus", "bias ids"), ("both", "scale")]
    weighed += [("softplus", "others"), ("softplus", "bias others"), ("softplus", "bias left out"), ("rows", "others")]
    weighed += [("softplus", "bias others scale")]  # sigmoid_loss with a learned scale and bias
    weighed += [("both", "bias ids"), ("both sums", "bias"), ("both sums", "ids")]
    plain = ("rows", ""), ("both", ""), ("everything", "everything")
    for dtype, n, m in (
        (torch.bfloat16, 8192, 32768),
        (torch.bfloat16, 4099, 50257),
        (torch.float16, 8192, 32768),
    ):
        case = _Fused(dtype, n, m)
        for what, extra in reduced if dtype == torch.bfloat16 else plain:
            yield _name(f"reduce {what} {extra} {case.about}"), partial(case.reduce, WANTS[what], extra)
        for what, extra in weighed if dtype == torch.bfloat16 else plain:
            yield _name(f"score_grad {what} {extra} {case.about}"), partial(case.score_grad, UPSTREAM[what], extra)


class _Fused:
    """The fused walks over operands of one dtype and size."""

    def __init__(self, dtype: torch.dtype, n: int, m: int) -> None:
        self.n, self.m = n, m
        self.query, self.key = (empty(rows, 1024, dtype=dtype) for rows in (n, m))
        self.targets = empty(n, dtype=torch.int64)
        self.about = f"{str(dtype)[6:]} {n}x{m}"

    def reduce(self, wants: ReductionSpec, extra: str) -> None:
        n, m, fused = self.n, self.m, _BACKEND.fused
        score_map, mask = _given(extra, n, m)
        ranked, target = wants.ranks, empty(n)
        fused.target_scores(self.query, self.key, score_map, self.targets, target)
        put_back = mask is not None and mask.keep_target
        given = target if ranked or put_back else None, empty(m) if wants.column_lse and ranked else None
        fused.reduce(self.query, self.key, score_map, self.targets, mask, wants, *given)

    def score_grad(self, terms: Callable[[int, int], ScoreGradTerms], extra: str) -> None:
        n, m, fused = self.n, self.m, _BACKEND.fused
        score_map, mask = _given(extra, n, m)
        d_scale = empty(n, dtype=torch.float64) if extra == "everything" or "scale" in extra else None
        out = empty(n, -(-m // 16) * 16, dtype=self.query.dtype)[:, :m]
        given = self.query, self.key, score_map, self.targets, mask
        fused.score_grad(*given, terms(n, m), out, d_scale)


def chunk_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, launch) of the kernels over chunks of raw scores, and of what else the backend launches."""
    extras = [("both", extra) for extra in EXTRAS[1:]] + [("everything", "everything")]
    for dtype in (torch.float32, torch.bfloat16):
        raw, about = empty(4096, 32768, dtype=dtype), str(dtype)[6:]
        for what, extra in [(w, "") for w in WANTS] + extras:
            yield _name(f"chunk reduce {what} {extra} {about}"), partial(_reduce_chunk, raw, WANTS[what], extra)
        for what, extra in [(u, "") for u in UPSTREAM] + extras:
            yield _name(f"chunk score_grad {what} {extra} {about}"), partial(_weigh_chunk, raw, UPSTREAM[what], extra)
        for what, extra in (("rows", ""), ("rows", "softcap"), ("all rows", "everything")):
            yield _name(f"chunk row_loss {what} {extra} {about}"), partial(_row_loss, raw, WANTS[what], extra)
        for other in (torch.float32, torch.bfloat16):
            for beta in (None, 0.5):
                for trained in ((True, True), (True, False), (False, True)):
                    sides = "both" if all(trained) else "p" if trained[0] else "q"
                    name = f"divergence {'KL' if beta is None else 'JS'} {sides} {about} {str(other)[6:]}"
                    yield name, partial(_diverge, raw, empty(4096, 32768, dtype=other), beta, trained)
    raw, grad = empty(4096, 32768), empty(4096, 32768, dtype=torch.float16)
    yield "chunk score_grad both into float16", partial(_weigh_chunk, raw, UPSTREAM["both"], "", grad)
    yield "gradient planes", _planes


def _reduce_chunk(raw: torch.Tensor, wants: ReductionSpec, extra: str) -> None:
    n, m = raw.shape
    score_map, mask = _given(extra, n, m)
    targets = empty(n, dtype=torch.int64)
    rows = RowAccumulators.empty(n, torch.float32, raw.device, wants)
    rows.expect_lse()
    if not wants.column_lse:
        _BACKEND.reduce_rows(raw, score_map, targets, mask, rows)
        return
    columns = ColumnAccumulators.empty(m, torch.float32, raw.device, wants)
    columns.expect_lse()
    if not wants.ranks:
        _BACKEND.reduce_both(raw, score_map, targets, mask, rows, columns)
        return
    columns.target = empty(m)
    _BACKEND.reduce_rows(raw, score_map, targets, mask, rows)
    _BACKEND.reduce_columns(raw, score_map, targets, mask, columns)


def _weigh_chunk(
    raw: torch.Tensor, upstream: Callable[[int, int], ScoreGradTerms], extra: str, grad: torch.Tensor | None = None
) -> None:
    n, m = raw.shape
    score_map, mask = _given(extra, n, m)
    d_scale = empty(n, dtype=torch.float64) if extra == "everything" else None
    given = raw, score_map, empty(n, dtype=torch.int64), mask
    _BACKEND.score_grad_(*given, upstream(n, m), d_scale, raw if grad is None else grad)


def _row_loss(raw: torch.Tensor, wants: ReductionSpec, extra: str) -> None:
    n, m = raw.shape
    score_map, mask = _given(extra, n, m)
    rows = RowAccumulators.empty(n, torch.float32, raw.device, wants)
    rows.finished_lse = _lse(n)
    smoothing = (empty(n), empty(n), empty(n)) if extra else (None, empty(n), None)
    _BACKEND.row_loss_(raw, score_map, empty(n, dtype=torch.int64), mask, rows, LossTerms(empty(n), *smoothing), raw)


def _diverge(p: torch.Tensor, q: torch.Tensor, beta: float | None, trained: tuple[bool, bool]) -> None:
    values = empty(p.shape[0])
    _BACKEND.divergence_(
        p, q, 1.0, beta, values, values, *(raw if wanted else None for raw, wanted in zip((p, q), trained, strict=True))
    )


def _planes() -> None:
    high, low = empty(4096, 1024, dtype=torch.bfloat16), empty(4096, 1024, dtype=torch.int16)
    for part in (high, empty(4096, 1024)):
        _BACKEND.accumulate_(high, low, part)
    for scale in (empty(1), empty(4096)):
        _BACKEND.round_scaled_(high, low, scale)
