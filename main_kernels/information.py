"""Mutual information of two sides from critic scores of their pairs, by variational bounds.

f_ij = query_i·key_j / temperature; the diagonal holds samples of the joint distribution, what is off it samples of the
product of the marginals. All bounds are a few means over vectors of one sweep.
"""

from __future__ import annotations

import math
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
    """A bound on the mutual information of query and key, to report or to maximise (``club``: to minimise).

    With f_ij = query_i·key_j / temperature, Z = mean_{i≠j} exp(f_ij) and means over the N pairs or N (N - 1) others:

    ===========  ============================================  ====================================================
    ``infonce``  log N + mean(f_ii - log sum_j exp f_ij)       van den Oord et al., 2018; lower bound, at most log N
    ``nwj``      mean f_ii - Z / e                             Nguyen, Wainwright and Jordan, 2010; lower bound,
                                                               tight where f = 1 + the log density ratio
    ``tuba``     1 + mean(f_ii - b_i)                          Barber and Agakov, 2003, as in Poole et al., 2019;
                 - mean_{i≠j} exp(f_ij - b_i)                  lower bound for any baseline b
    ``dv``       mean f_ii - log Z                             Donsker and Varadhan, 1983; MINE, Belghazi et al.,
                                                               2018; its log is biased in small batches
    ``js``       -mean softplus(-f_ii)                         f-GAN, Nowozin et al., 2016; Deep InfoMax, Hjelm et
                 - mean_{i≠j} softplus(f_ij)                   al., 2019; orders critics, is not in units of I
    ``smile``    dv with f clipped to ±clip inside Z           Song and Ermon, 2020; gradient of ``js``. Less variance
                                                               for a bias that stays
    ``club``     mean f_ii - mean_ij f_ij                      Cheng et al., 2020; upper bound where f is the log
                                                               likelihood. O(N D), no sweep
    ===========  ============================================  ====================================================

    Args:
        query: [N, D] and key: [N, D], float32, bfloat16, float16 or float64; row i of one is the pair of row i of the
            other. N >= 2 for all but ``infonce``.
        temperature: a positive number, or a 0-dimensional tensor, which may require a gradient; the scores are divided
            by it.
        clip: positive, nats; for ``smile``.
        baseline: b, floating, 0-dimensional or [N], nats; for ``tuba``, None is 0. May require a gradient.
        workspace_bytes: bytes of scores kept between forward and backward, which then costs a matrix product less.

    Returns:
        float32 scalar (float64 for float64 inputs), nats, differentiable. ``nwj`` and ``tuba`` hold exp(f) itself: they
        are -inf once scores off the diagonal pass 88.

    Raises:
        ValueError: for shapes, dtypes, devices or options that do not fit, naming the argument.
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
    """Every estimator of ``mutual_information`` (``tuba`` without a baseline), all from one sweep.

    Args:
        query: [N, D] and key: [N, D], N >= 2. temperature, clip, workspace_bytes: as there.

    Returns:
        estimator -> float32 scalar (float64 for float64 inputs), nats; each differentiable, and any sum of them costs
        one backward.

    Raises:
        ValueError: for shapes, dtypes, devices or options that do not fit, naming the argument.
    """
    scale = _check(query, key, temperature, clip, least=2)
    swept = sweep(
        query,
        key,
        scale=scale,
        targets=torch.arange(query.shape[0], dtype=torch.int64, device=query.device),
        keep_target=False,
        softplus=True,
        clip=clip,
        workspace_bytes=workspace_bytes,
    )
    joint, others = swept.target, swept.row_lse
    js = _js(joint, swept.softplus)
    return {
        "infonce": _infonce(torch.logaddexp(swept.row_nll, torch.zeros_like(joint))),
        "nwj": _nwj(joint, others),
        "tuba": _tuba(joint, others, None),
        "dv": _dv(joint, others, swept.row_lse_low),
        "js": js,
        "smile": _smile(joint, swept.clipped, js),
        "club": _club(query, key, scale),
    }


def _infonce(loss: Tensor) -> Tensor:
    """loss[N]: log sum_j exp f_ij - f_ii. A sum and not a mean, so that one number arrives: see CrossEntropy."""
    return math.log(loss.shape[0]) - loss.sum() / loss.shape[0]


# Below, joint[N] holds f_ii and others[N] the log-sum-exps of f_ij over j ≠ i.


def _log_mean_exp(others: Tensor) -> Tensor:
    """log Z."""
    rows = others.shape[0]
    return others.logsumexp(0) - math.log(rows * (rows - 1))


def _nwj(joint: Tensor, others: Tensor) -> Tensor:
    return joint.mean() - (_log_mean_exp(others) - 1).exp()


def _tuba(joint: Tensor, others: Tensor, baseline: Tensor | None) -> Tensor:
    if baseline is not None:
        baseline = baseline.to(joint.dtype)
        joint, others = joint - baseline, others - baseline
    return 1 + joint.mean() - _log_mean_exp(others).exp()


def _dv(joint: Tensor, others: Tensor, low: Tensor | float = 0.0) -> Tensor:
    """low[N]: what others lack. Both are counted from a score, so that an offset that all have costs no digits."""
    start = joint.detach()[0]
    return (joint - start).mean() - _log_mean_exp((others - start) + low)


def _js(joint: Tensor, others_softplus: Tensor) -> Tensor:
    """others_softplus[N]: sums of softplus(f_ij) over j ≠ i."""
    return logsigmoid(joint).mean() - others_softplus.mean() / (joint.shape[0] - 1)


def _smile(joint: Tensor, others_clipped: Tensor, js: Tensor) -> Tensor:
    """others_clipped[N]: as others, of the clipped scores."""
    return _dv(joint, others_clipped).detach() + (js - js.detach())


def _club(query: Tensor, key: Tensor, scale: float | Tensor) -> Tensor:
    """From centred embeddings: the difference of the two means would lose what they have in common."""
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    return ((query - query.mean(0)) * (key - key.mean(0))).sum() * scale / query.shape[0]


def _check(query: Tensor, key: Tensor, temperature: float | Tensor, clip: float, *, least: int) -> float | Tensor:
    """Returns 1 / temperature."""
    checks.check_pairs(query, key)
    checks.check_positive("clip", clip)
    if query.shape[0] < least:
        raise ValueError(f"query: got {query.shape[0]} rows, want at least {least}: others are needed to compare with")
    return checks.inverse_temperature(temperature, query)


def _check_baseline(baseline: Tensor, query: Tensor, estimator: str) -> None:
    if estimator != "tuba":
        raise ValueError(f"baseline: got one, want none with estimator {estimator!r}")
    if isinstance(baseline, Tensor) and baseline.ndim == 0:
        baseline = baseline.expand(query.shape[0])
    checks.check_vector("baseline", baseline, query.shape[0], integer=False, like=query)
