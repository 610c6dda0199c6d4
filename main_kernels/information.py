"""mutual_information, mutual_information_bounds: variational bounds from the scores of pairs.

f_ij = query_i·key_j / temperature. The diagonal holds samples of the joint distribution, the other entries samples of
the product of the marginals. All bounds are means over the vectors of one sweep.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from . import checks
from .sweep import DEFAULT_WORKSPACE_BYTES, CrossEntropy, sweep

ESTIMATORS = ("infonce", "nwj", "tuba", "dv", "js", "smile", "club")


def mutual_information(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    estimator: Literal["infonce", "nwj", "tuba", "dv", "js", "smile", "club"] = "infonce",
    clip: float = 5.0,
    baseline: Tensor | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> Tensor:
    """Estimate the mutual information of query and key by a variational bound.

    Report or maximise the result; minimise it for ``club``. With f_ij = query_i·key_j / temperature,
    Z = mean_{i≠j} exp(f_ij), and means over the N pairs or the N (N - 1) other entries:

    | estimator | formula | property |
    |---|---|---|
    | ``infonce`` | log N + mean(f_ii - log sum_j exp f_ij) | lower bound, at most log N |
    | ``nwj`` | mean f_ii - Z / e | lower bound, tight for f = 1 + log density ratio |
    | ``tuba`` | 1 + mean(f_ii - b_i) - mean_{i≠j} exp(f_ij - b_i) | lower bound for any baseline b |
    | ``dv`` | mean f_ii - log Z | lower bound, biased in small batches by its log |
    | ``js`` | -mean softplus(-f_ii) - mean_{i≠j} softplus(f_ij) | ranks critics; not in units of information |
    | ``smile`` | ``dv`` with f clipped to ±clip in Z, gradient of ``js`` | less variance for a lasting bias |
    | ``club`` | mean f_ii - mean_ij f_ij | upper bound if f is the log-likelihood; O(N D), no sweep |

    Sources: InfoNCE, van den Oord et al., 2018. NWJ, Nguyen, Wainwright and Jordan, 2010. TUBA, Barber and Agakov,
    2003, as in Poole et al., 2019. DV, Donsker and Varadhan, 1983; MINE, Belghazi et al., 2018. JS, f-GAN, Nowozin et
    al., 2016; Deep InfoMax, Hjelm et al., 2019. SMILE, Song and Ermon, 2020. CLUB, Cheng et al., 2020.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64. N >= 2, or 1 for ``infonce``.
        key: [N, D], dtype and device of query. Row i is the pair of row i of query.
        temperature: positive number, or 0-dimensional tensor, which may require a gradient. Divides the scores.
        estimator: see above.
        clip: positive, nats. Only used by ``smile``.
        baseline: floating, 0-dimensional or [N], nats. The baseline b of ``tuba``, which may require a gradient. None:
            0.
        workspace_bytes: bytes of scores that may be saved for the backward, which then costs two matrix products
            instead of three.

    Returns:
        float32 scalar (float64 for float64 inputs), nats, differentiable. ``nwj`` and ``tuba`` contain exp(f): they are
        -inf if scores off the diagonal exceed 88.

    Raises:
        ValueError: a shape, dtype, device or option is invalid. The message names the argument.

    Example:
        >>> lower = mutual_information(query, key, temperature=0.07, estimator="smile")
        >>> (-lower).backward()  # maximise it
    """
    checks.check_choice("estimator", estimator, ESTIMATORS)
    scale = _check(query, key, temperature, clip, least=1 if estimator == "infonce" else 2)
    if baseline is not None:
        _check_baseline(baseline, query, estimator)
    if estimator == "club":
        return _club(query, key, scale)
    rows = query.shape[0]
    swept = sweep(
        query,
        key,
        scale=scale,
        targets=torch.arange(rows, dtype=torch.int64, device=query.device),
        check_targets=False,
        keep_target=estimator == "infonce",
        row_lse=estimator != "js",
        softplus=estimator in ("js", "smile"),
        clip=clip if estimator == "smile" else 0.0,
        loss=CrossEntropy() if estimator == "infonce" else None,
        workspace_bytes=workspace_bytes,
    )
    if estimator == "infonce":
        return _infonce(swept.loss)
    joint = swept.target
    if estimator == "nwj":
        return _nwj(joint, swept.row_lse)
    if estimator == "tuba":
        return _tuba(joint, swept.row_lse, baseline)
    if estimator == "dv":
        return _dv(joint, swept.row_lse, swept.row_lse_low)
    js = _js(joint, swept.softplus)
    return js if estimator == "js" else _smile(joint, swept.clipped, js)


def mutual_information_bounds(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    clip: float = 5.0,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> dict[str, Tensor]:
    """Compute every estimator of ``mutual_information`` from one sweep, ``tuba`` with baseline 0.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64. N >= 2.
        key: [N, D], dtype and device of query. Row i is the pair of row i of query.
        temperature: positive number, or 0-dimensional tensor, which may require a gradient. Divides the scores.
        clip: positive, nats. Only used by ``smile``.
        workspace_bytes: bytes of scores that may be saved for the backward, which then costs two matrix products
            instead of three.

    Returns:
        A dict from estimator to float32 scalar (float64 for float64 inputs), nats. Each is differentiable, and any sum
        of them costs one backward.

    Raises:
        ValueError: a shape, dtype, device or option is invalid. The message names the argument.
    """
    scale = _check(query, key, temperature, clip, least=2)
    swept = sweep(
        query,
        key,
        scale=scale,
        targets=torch.arange(query.shape[0], dtype=torch.int64, device=query.device),
        check_targets=False,
        keep_target=False,
        softplus=True,
        clip=clip,
        workspace_bytes=workspace_bytes,
    )
    joint, others = swept.target, swept.row_lse
    js = _js(joint, swept.softplus)
    return {
        "infonce": _infonce(torch.logaddexp(swept.row_nll(), torch.zeros_like(joint))),
        "nwj": _nwj(joint, others),
        "tuba": _tuba(joint, others, None),
        "dv": _dv(joint, others, swept.row_lse_low),
        "js": js,
        "smile": _smile(joint, swept.clipped, js),
        "club": _club(query, key, scale),
    }


def _log(count: int, like: Tensor) -> Tensor:
    """Return log(count) as a tensor: with math.log, a compiled graph would serve only one batch size."""
    return like.new_full((), count, dtype=torch.float64).log().to(like.dtype)


def _infonce(loss: Tensor) -> Tensor:
    """Reduce loss[N] = log sum_j exp f_ij - f_ii by its sum, whose gradient is a scalar: see CrossEntropy."""
    return _log(loss.shape[0], loss) - loss.sum() / loss.shape[0]


# Below, joint[N] holds f_ii and others[N] the log-sum-exps of f_ij over j ≠ i.


def _log_mean_exp(others: Tensor) -> Tensor:
    """Return log Z."""
    rows = others.shape[0]
    return others.logsumexp(0) - _log(rows * (rows - 1), others)


def _nwj(joint: Tensor, others: Tensor) -> Tensor:
    return joint.mean() - (_log_mean_exp(others) - 1).exp()


def _tuba(joint: Tensor, others: Tensor, baseline: Tensor | None) -> Tensor:
    if baseline is not None:
        baseline = baseline.to(joint.dtype)
        joint, others = joint - baseline, others - baseline
    return 1 + joint.mean() - _log_mean_exp(others).exp()


def _dv(joint: Tensor, others: Tensor, low: Tensor | float = 0.0) -> Tensor:
    """Subtract one score from both terms, so that a common offset costs no digits. low[N]: rounding error of others."""
    start = joint.detach()[0]
    return (joint - start).mean() - _log_mean_exp((others - start) + low)


def _js(joint: Tensor, others_softplus: Tensor) -> Tensor:
    """others_softplus[N]: sums of softplus(f_ij) over j ≠ i."""
    return logsigmoid(joint).mean() - others_softplus.mean() / (joint.shape[0] - 1)


def _smile(joint: Tensor, others_clipped: Tensor, js: Tensor) -> Tensor:
    """others_clipped[N]: log-sum-exps of the clipped scores over j ≠ i."""
    return _dv(joint, others_clipped).detach() + (js - js.detach())


def _club(query: Tensor, key: Tensor, scale: float | Tensor) -> Tensor:
    """Use centred embeddings: subtracting the two means of the scores would cancel their common part."""
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    return ((query - query.mean(0)) * (key - key.mean(0))).sum() * scale / query.shape[0]


def _check(query: Tensor, key: Tensor, temperature: float | Tensor, clip: float, *, least: int) -> float | Tensor:
    """Check the arguments and return 1 / temperature."""
    checks.check_pairs(query, key)
    checks.check_positive("clip", clip)
    if query.shape[0] < least:
        raise ValueError(
            f"query: expected at least {least} rows, to compare each with another, got {query.shape[0]} rows"
        )
    return checks.inverse_temperature(temperature, query)


def _check_baseline(baseline: Tensor, query: Tensor, estimator: str) -> None:
    if estimator != "tuba":
        raise ValueError(f"baseline: expected none with estimator {estimator!r}, got one")
    if isinstance(baseline, Tensor) and baseline.ndim == 0:
        baseline = baseline.expand(query.shape[0])
    checks.check_vector("baseline", baseline, query.shape[0], integer=False, like=query)
