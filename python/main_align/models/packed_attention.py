"""packed_attention, packing_arguments, use_packed_attention: causal attention within the segments of one packed row.

The function is registered with transformers' attention interface under `PACKED`. It takes segment boundaries as
transformers passes them to flash attention (`cu_seq_lens_q/k`, `max_length_q/k`), so any model that uses the interface
works unpatched. A segment that continues others attends to them too: `key_rows` has the rows of its keys. Without
boundaries, as in generation, it calls transformers' sdpa attention.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from ..errors import UserError
from .host_copies import to_device
from .packing import Segment

PACKED = "main_align_packed"
FLASH = "flash_attention_2"
QUERY_BLOCK = 512
"""queries that attend at once where a mask is needed, so memory is linear in the length of a segment"""
SHORT = 192
"""keys up to which torch's backward on a CPU is faster in float32 than in bfloat16: twice with 128, thrice with 32"""


def packed_attention(
    module: nn.Module,
    query: Tensor,  # [1, H, T, d]
    key: Tensor,  # [1, Hkv, T, d]
    value: Tensor,  # [1, Hkv, T, dv]
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,  # [B+1]
    cu_seq_lens_k: Tensor | None = None,  # [B+1], bounds in key_rows
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    key_rows: Tensor | None = None,  # [K], rows of each segment's keys; its own are the last. Default: its own alone
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each segment and return [1, T, H, dv] without weights.

    With a `sliding_window` of w, a token attends to itself and the w - 1 tokens before it, as in Mistral. Some families
    put the window only into the mask, and `_mask` returns it.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        options: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
        options |= {"softcap": softcap, "s_aux": s_aux}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options, **others)
    if attention_mask is not None and attention_mask.shape[-2] == 0:  # see _mask
        sliding_window, attention_mask = sliding_window or attention_mask.shape[-1], None
    refused = {"dropout": dropout, "softcap": softcap, "s_aux": s_aux, "mask": attention_mask}
    for name, argument in refused.items():
        if argument is not None and not (isinstance(argument, float) and argument == 0.0):
            remedy = "use a model without it, such as LLaMA or Mistral."
            if name == "dropout":
                remedy = "load the model with attention_dropout=0.0 (GPT-2: attn_pdrop=0.0), in model_init_kwargs."
            raise UserError(
                f"{type(module).__name__} uses attention with {name}, which packed sequences do not support: {remedy}"
            )
    if key_rows is None:
        cu_seq_lens_k, max_length_k = cu_seq_lens_q, max_length_q
    assert cu_seq_lens_k is not None
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # rotary embeddings turn some into float32
        query, key, value = (t.to(torch.get_autocast_dtype("cuda")) for t in (query, key, value))
    half = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    takes_gqa = _varlen_takes_gqa() if half else None
    if takes_gqa is not None:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # [T, H, d]
        if key_rows is not None:
            k, v = k[key_rows], v[key_rows]
        bounds: tuple[Any, ...] = cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        gqa: dict[str, Any] = {"enable_gqa": True} if takes_gqa else {}
        attended: Any = varlen_attn(q, k, v, *bounds, scale=scaling, window_size=window, **gqa)
        return attended[None], None
    return _by_segment(query, key, value, cu_seq_lens_q, cu_seq_lens_k, key_rows, scaling, sliding_window), None


@torch.compiler.disable  # each number of segments would be compiled
def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    key_rows: Tensor | None,
    scale: float | None,
    window: int | None,
) -> Tensor:
    results = []
    segments = _segments.get()
    if segments:
        lengths, key_lengths = segment_lengths(segments)
    else:
        lengths, key_lengths = (bounds.diff().tolist() for bounds in (query_bounds, key_bounds))
    # a gradient for each slice would be as long as the row, so split, which has one for all segments
    parts = zip(*(t.split(lengths, 2) for t in (query, key, value)), strict=True)
    for (q, k, v), keys, last in zip(parts, key_lengths, itertools.accumulate(key_lengths), strict=True):
        if key_rows is not None and keys > q.shape[2]:
            k, v = (t.index_select(2, key_rows[last - keys : last]) for t in (key, value))
        results.append(_segment(q, k, v, scale, window).transpose(1, 2))
    return torch.cat(results, 1)


def _segment(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    """Attend from the L queries [1, H, L, d] of a segment, the last of its keys, to the keys before each of them."""
    length, keys = query.shape[2], key.shape[2]
    if keys <= SHORT and _is_bfloat16_training(query, key, value):
        with torch.autocast("cpu", enabled=False):
            return _segment(query.float(), key.float(), value.float(), scale, window).bfloat16()
    if length == keys and (window is None or length <= window):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    blocks, window = [], window or keys
    for start in range(0, length, step := min(window, QUERY_BLOCK)):
        begin, end = keys - length + start, min(keys - length + start + step, keys)  # positions of the queries
        first = max(0, begin - window + 1)
        ahead = (
            torch.arange(begin, end, dtype=torch.int64, device=query.device)[:, None]
            - torch.arange(first, end, dtype=torch.int64, device=query.device)[None, :]
        )  # [block, keys]: positions from key to query
        blocks.append(
            F.scaled_dot_product_attention(
                query[:, :, start : start + step],
                key[:, :, first:end],
                value[:, :, first:end],
                attn_mask=(ahead >= 0) & (ahead < window),
                scale=scale,
                enable_gqa=True,
            )
        )
    return torch.cat(blocks, 2)


def _is_bfloat16_training(*tensors: Tensor) -> bool:
    if tensors[0].device.type != "cpu" or not any(tensor.requires_grad for tensor in tensors):
        return False
    is_autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if is_autocast else tensors[0].dtype) == torch.bfloat16


@functools.cache
def _look_for_varlen() -> bool | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    options = inspect.signature(varlen_attn).parameters
    return "enable_gqa" in options if "window_size" in options else None


def _varlen_takes_gqa() -> bool | None:
    """Return whether torch's variable-length flash attention (CUDA, 16-bit) needs `enable_gqa` for heads that share a
    key, as later versions do. None before torch 2.11, where it has no window."""
    return _look_for_varlen()


# torch.compiler.assume_constant_result, which would import all of torch._dynamo for this one mark
_varlen_takes_gqa._dynamo_marked_constant = True  # type: ignore[attr-defined]


_segments: ContextVar[Sequence[Segment] | None] = ContextVar("_segments", default=None)


@contextmanager
def packed_forward(segments: Sequence[Segment] = ()) -> Iterator[None]:
    """Skip transformers' T x T mask during a forward with `packing_arguments`, whose boundaries suffice.

    Args:
        segments: the segments of the packed row. Default: each layer that needs their lengths reads the boundaries,
            for which the host waits if they are on a GPU.
    """
    token = _segments.set(segments)
    try:
        yield
    finally:
        _segments.reset(token)


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    """Return transformers' mask, but of a packed forward only the window of the layers that it is for, as the size of a
    mask [1, 1, 0, window]."""
    if _segments.get() is None:
        return sdpa_mask(*arguments, **options)
    local_size = options.get("local_size")
    if local_size is None:
        return None
    if getattr(options.get("config"), "attention_chunk_size", None) == local_size:
        raise UserError(
            "the model attends within chunks of its sequence, which packed sequences do not support: use a model "
            "without them, such as LLaMA or Mistral."
        )
    return torch.empty((1, 1, 0, local_size), dtype=torch.bool, device="cpu")


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _mask)


def packing_arguments(lengths: list[int], device: torch.device | str) -> dict[str, Any]:
    """Return the arguments of a model's forward, besides `input_ids`, for segments of these lengths."""
    rows = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    return segment_arguments([Segment(len(path), path) for path in rows], device)


def segment_arguments(segments: Sequence[Segment], device: torch.device | str) -> dict[str, Any]:
    """Return the arguments of a model's forward, besides `input_ids`, for the segments of a Packing.

    Args:
        segments: the segments in the order of their rows.
        device: device of the model.
    """
    lengths, keys = segment_lengths(segments)
    positions = np.concatenate([np.arange(k - n, k) for n, k in zip(lengths, keys, strict=True)])
    bounds, key_bounds = (to_device(np.cumsum([0, *sizes], dtype=np.int32), device) for sizes in (lengths, keys))
    arguments = {
        "position_ids": to_device(positions, device)[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": key_bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(keys),
        "use_cache": False,
    }
    if keys == lengths:
        return arguments
    return arguments | {"key_rows": to_device(np.concatenate([s.path for s in segments]), device)}


def segment_lengths(segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
    """Return the number of queries, and that of keys, of each segment."""
    return [segment.length for segment in segments], [len(segment.path) for segment in segments]


def use_packed_attention(model: PreTrainedModel) -> str:
    """Switch `model` to packed attention and return the name of the implementation.

    It is flash-attn if that is installed and the model is 16-bit on CUDA, else `PACKED`.
    """
    half = model.dtype in (torch.float16, torch.bfloat16)
    flash = model.device.type == "cuda" and half and is_flash_attn_2_available()
    name = FLASH if flash else PACKED
    model.set_attn_implementation(name)
    return name
