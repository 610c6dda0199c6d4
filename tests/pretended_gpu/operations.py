"""register: operations that torch has for CUDA devices alone. They check their arguments as the real ones do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_LIBRARIES: list[torch.library.Library] = []


def register() -> None:
    """Register them with torch."""
    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("_flash_attention_forward", _attention),
        ("_flash_attention_backward", _attention_gradient),
        ("mm.dtype", _product),
        ("mm.dtype_out", _product_into),
        ("addmm.dtype_out", _sum_into),
        ("histc", _histc),
        ("_conv_depthwise2d", _depthwise_convolution),
    ):
        library.impl(name, function, "CUDA")
    _LIBRARIES.append(library)


def _check_devices(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert tensor.is_cuda, f"expected a tensor on cuda:0, got one on {tensor.device}"


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mm(left.to(dtype), right.to(dtype))


def _product_into(left: Tensor, right: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
    _check_devices(left, right, out)
    return out.copy_(_product(left, right, dtype))


def _sum_into(
    first: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype, *, beta: float = 1, alpha: float = 1, out: Tensor
) -> Tensor:
    _check_devices(first, left, right, out)
    return out.copy_(torch.addmm(first.to(dtype), left.to(dtype), right.to(dtype), beta=beta, alpha=alpha))


def _histc(values: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """The CPU's has no integers. Like the real one it does not wait."""
    counts = torch.histc(values.to("cpu", non_blocking=True).double(), *arguments, **options)
    return counts.to(values.device, values.dtype, non_blocking=True)


def _depthwise_convolution(
    values: Tensor, weight: Tensor, kernel: Any, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    here = [None if t is None else t.to("cpu", non_blocking=True) for t in (values, weight, bias)]
    done = torch.conv2d(*here, stride, padding, dilation, groups=values.shape[1])
    return done.to(values.device, non_blocking=True)


class _Segment:
    """One segment of packed attention: its rows of queries and keys, and its weights."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, queries: slice, keys: slice, scale: float, window: tuple
    ) -> None:
        self.queries, self.keys, self.scale = queries, keys, scale
        self.group = query.shape[1] // key.shape[1]
        self.query = query[queries].float().transpose(0, 1)  # [H, L, d]
        self.key, self.value = (t[keys].float().transpose(0, 1).repeat_interleave(self.group, 0) for t in (key, value))
        self.scores = self.query @ self.key.transpose(1, 2) * scale
        length, count = self.scores.shape[1:]
        place = torch.arange(count - length, count, device=query.device)[:, None]
        ahead = torch.arange(count, device=query.device) - place  # from query to key
        left, right = window
        hidden = (ahead > right) if right >= 0 else torch.zeros_like(ahead, dtype=torch.bool)
        hidden |= (ahead < -left) if left >= 0 else False
        self.scores.masked_fill_(hidden, float("-inf"))
        self.weights = self.scores.softmax(-1)

    def summed(self, by_head: Tensor) -> Tensor:
        """Sum [H, K, d] over the heads that share a key, as [K, Hkv, d]."""
        return by_head.unflatten(0, (-1, self.group)).sum(1).transpose(0, 1)


def _segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    longest: tuple[int, int],
    is_causal: bool,
    options: dict[str, Any],
) -> Iterator[_Segment]:
    _check_devices(query, key, value, query_bounds, key_bounds)
    assert query.dtype == key.dtype == value.dtype
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert query_bounds.dtype == key_bounds.dtype == torch.int32
    assert query_bounds.is_contiguous()
    assert key_bounds.is_contiguous()
    assert all(t.stride(-1) == 1 for t in (query, key, value))
    assert query.shape[1] % key.shape[1] == 0
    assert query.shape[2] == key.shape[2] <= 256
    # what the real operation does without the host is not counted
    bounds = [t.to("cpu", non_blocking=True).tolist() for t in (query_bounds, key_bounds)]
    assert [ends[-1] for ends in bounds] == [len(query), len(key)]
    scale = options.get("scale")
    left, right = (options.get(f"window_size_{side}") for side in ("left", "right"))
    window = (-1 if left is None else left, 0 if is_causal else -1 if right is None else right)
    for begin, end, first, last in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False):
        assert end - begin <= longest[0]
        assert last - first <= longest[1]
        rows = slice(begin, end), slice(first, last)
        yield _Segment(query, key, value, *rows, 1 / math.sqrt(query.shape[2]) if scale is None else scale, window)


def _attention(
    query: Tensor,  # [T, H, d]
    key: Tensor,  # [K, Hkv, d]
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    is_causal: bool,
    return_debug_mask: bool,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    assert not dropout
    assert not return_debug_mask
    longest = longest_query, longest_key
    segments = list(_segments(query, key, value, query_bounds, key_bounds, longest, is_causal, options))
    out = torch.cat([(s.weights @ s.value).transpose(0, 1) for s in segments]).to(query.dtype)
    lse = torch.cat([s.scores.logsumexp(-1) for s in segments], 1)
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    return out, lse, state, query.new_empty(0), query.new_empty(0)


def _attention_gradient(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    is_causal: bool,
    state: Tensor,
    unused: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    assert not dropout
    grads = [torch.zeros_like(t, dtype=torch.float32) for t in (query, key, value)]
    longest = longest_query, longest_key
    for s in _segments(query, key, value, query_bounds, key_bounds, longest, is_causal, options):
        upstream = grad[s.queries].float().transpose(0, 1)
        by_weight = upstream @ s.value.transpose(1, 2)
        by_score = s.weights * (by_weight - (s.weights * by_weight).sum(-1, keepdim=True)) * s.scale
        grads[0][s.queries] += (by_score @ s.key).transpose(0, 1)
        grads[1][s.keys] += s.summed(by_score.transpose(1, 2) @ s.query)
        grads[2][s.keys] += s.summed(s.weights.transpose(1, 2) @ upstream)
    return grads[0].to(query.dtype), grads[1].to(key.dtype), grads[2].to(value.dtype)
