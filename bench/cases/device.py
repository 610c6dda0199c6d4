"""CASES of `python -m bench device`, with targets for an H100 in bfloat16: times over bare products of the same run.

`must` is the required ratio, `goal` the desired one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import peers
from . import consistency, pooling
from .case import HEADS, Row, Target, head, op, unit
from .contrastive import TEMPERATURE, symmetric

ENOUGH = 1 << 34  # workspace bytes that hold all scores


@dataclass(frozen=True)
class DeviceCase:
    """One op on a GPU: how to build a row, its shapes and its targets."""

    name: str
    build: Callable[..., Row]  # build(dtype, **shape), on torch's default device
    shapes: tuple[Mapping[str, int], ...]
    tiny: Mapping[str, int]
    targets: tuple[Target, ...] = ()
    leave_out: Mapping[int, tuple[str, ...]] | None = None  # index in shapes: contenders that need too much memory


def info_nce(dtype: torch.dtype, n: int, d: int) -> Row:
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    row = Row([query, key])
    row.products(query, key, 1, 3, 4)
    loss = op("info_nce")
    row.forward("ours_forward", lambda: loss(query, key, temperature=TEMPERATURE))
    row.train("ours_stored", lambda: loss(query, key, temperature=TEMPERATURE, workspace_bytes=ENOUGH))
    row.train("ours_recomputed", lambda: loss(query, key, temperature=TEMPERATURE, workspace_bytes=0))
    row.dense(lambda: symmetric((query @ key.T).float() / TEMPERATURE))
    row.train("memeff", lambda: peers.memeff_loss(query, key, TEMPERATURE))
    row.train("inf_cl", lambda: peers.inf_cl_loss(query, key, TEMPERATURE))
    row.train("open_clip", lambda: peers.clip_loss()(query, key, 1 / TEMPERATURE))
    return row


def sigmoid_loss(dtype: torch.dtype, n: int, d: int) -> Row:
    """Build a row without dense torch: the scores alone would take 17 GB, and its backward several times that."""
    query, key = unit(n, d, dtype), unit(n, d, dtype)
    scale, shift = torch.tensor(math.log(10.0), requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    row = Row([query, key, scale, shift])
    row.products(query, key, 4)
    loss = op("sigmoid_loss")
    row.train("ours_recomputed", lambda: loss(query, key, logit_scale=scale, logit_bias=shift, workspace_bytes=0))
    row.train("siglip_kernel", lambda: peers.siglip_kernel()(query, key, scale, shift))
    return row


def token_logprobs(dtype: torch.dtype, t: int, d: int, v: int) -> Row:
    hidden, weight = head(t, d, v, dtype)
    targets = torch.randint(0, v, (t,))
    row = Row([hidden, weight])
    row.products(hidden, weight, 1, 3)
    logprobs, loss = op("token_logprobs"), op("linear_cross_entropy")
    row.forward("ours_forward", lambda: logprobs(hidden, weight, targets, ignore_index=None).sum() / -t)
    row.train("ours", lambda: logprobs(hidden, weight, targets, ignore_index=None).sum() / -t)
    row.train("ours_linear_cross_entropy", lambda: loss(hidden, weight, targets))
    row.dense(lambda: F.cross_entropy((hidden @ weight.T).float(), targets))
    row.train("torch_linear_cross_entropy", lambda: peers.torch_linear_cross_entropy()(hidden, weight, targets))
    row.train("cut_cross_entropy", lambda: peers.cut_cross_entropy("cce")(hidden, weight, targets))
    row.train("liger", lambda: peers.liger()(hidden, weight, targets))
    row.train("liger_float32", lambda: peers.liger(accum_dtype=torch.float32)(hidden, weight, targets))
    row.train("liger_sm90", lambda: peers.liger_sm90()(hidden, weight, targets))
    row.train("quack", lambda: peers.quack()(hidden, weight, targets))
    # tuning would first try every configuration
    row.train("quack_logits", lambda: peers.quack(use_scaled_exp=False, tuned=False)(hidden, weight, targets))
    return row


def linear_kl(dtype: torch.dtype, t: int, d: int, v: int) -> Row:
    return consistency.linear_kl("forward", dtype, t, d, d, v)


DENSE = ("eager", "torch_compile", "torch_linear_cross_entropy")
CASES = (
    DeviceCase(
        "info_nce",
        info_nce,
        ({"n": 32768, "d": 1024},),
        {"n": 64, "d": 32},
        (
            Target("ours_forward", "products_1", 1.20, 1.08),
            Target("ours_stored", "products_3", 1.33, 1.22),
            Target("ours_recomputed", "products_4", 1.20, 1.06),
        ),
    ),
    DeviceCase(
        "sigmoid_loss",
        sigmoid_loss,
        ({"n": 65536, "d": 768},),
        {"n": 64, "d": 32},
        (Target("ours_recomputed", "products_4", 1.20, 1.08),),
    ),
    DeviceCase(
        "token_logprobs",
        token_logprobs,
        ({"t": 8192, **HEADS["llama-3-8b"]}, {"t": 65536, **HEADS["llama-3-8b"]}),
        {"t": 48, "d": 32, "v": 200},
        (Target("ours_forward", "products_1", 1.06, 1.02), Target("ours", "products_3", 1.08, 1.04)),
        {1: DENSE},
    ),
    DeviceCase(
        "linear_kl",
        linear_kl,
        ({"t": 8192, **HEADS["llama-3-8b"]},),
        {"t": 48, "d": 32, "v": 200},
        (Target("ours", "products_4", 1.12, 1.06),),
    ),
    *(
        DeviceCase(
            f"segment_pool_{build.__name__}", build, ({"t": 65536, "d": 4096, "b": 512},), {"t": 60, "d": 32, "b": 5}
        )
        for build in (pooling.mean, pooling.attention)
    ),
)
