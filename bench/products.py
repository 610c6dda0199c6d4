"""Products: the matrix products and the attention of packed passes: the floor of scoring and training.

Nothing else: no embedding, norm, rotary embedding, activation, residual or softmax of the head. Operands are where the
products read them, results go into buffers that were allocated before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .cases.case import CHUNK
from .measure import fastest

HEAD_ROWS = (128, CHUNK)


class Pack(NamedTuple):
    """The shape of one packed pass.

    Args:
        lengths: tokens of each segment.
        scored: number of states that the head reads.
        keys: tokens that those of each segment attend to, its own and those of the prefix that it continues. Default:
            its own, before each of them.
    """

    lengths: Sequence[int]
    scored: int
    keys: Sequence[int] | None = None

    @property
    def attended(self) -> list[tuple[int, int]]:
        """Return the number of queries and of keys of each segment."""
        return list(zip(self.lengths, self.keys or self.lengths, strict=True))


class Products:
    """Run the products of some packs.

    Args:
        model: a causal language model whose backbone consists of `nn.Linear` layers and grouped-query attention, such
            as LLaMA. Its weights are operands.
        packs: the passes.
        dtype: dtype of all operands.
        backward: for every product also those with its gradient, and the backward of attention. Default False.
        head_rows: rows that the head reads at once. Default CHUNK.
        attention: run the attention of each segment too, in a call of its own. Default True.
        attention_dtype: dtype of attention. Default: dtype.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        packs: Sequence[Pack],
        dtype: torch.dtype,
        *,
        backward: bool = False,
        head_rows: int = CHUNK,
        attention: bool = True,
        attention_dtype: torch.dtype | None = None,
    ) -> None:
        self.packs, self.backward, self.head_rows = packs, backward, head_rows
        backbone: Any = model.base_model
        linear = [module for module in backbone.modules() if isinstance(module, nn.Linear)]
        self.weights = [module.weight.detach().to(dtype) for module in linear]  # [out, in] each
        head: Any = model.get_output_embeddings()
        self.head = head.weight.detach().to(dtype)
        config = model.config
        self.attentions = config.num_hidden_layers if attention else 0
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        tokens = max(sum(pack.lengths) for pack in packs)
        longest = max(keys for pack in packs for _, keys in pack.attended)
        like = {"dtype": dtype, "device": model.device}
        widths = {width for weight in (*self.weights, self.head) for width in weight.shape[1:]}
        self.inputs = {width: torch.randn(tokens, width, **like) for width in widths}
        self.outputs = {weight.shape[0]: torch.empty(tokens, weight.shape[0], **like) for weight in self.weights}
        self.logits = torch.empty(min(head_rows, tokens), len(self.head), **like)
        attends = {**like, "dtype": attention_dtype or dtype}
        self.qkv = torch.randn(3, 1, config.num_attention_heads, longest, size, **attends)  # keys repeated beforehand
        if backward:
            self.d_inputs = {width: torch.empty(tokens, width, **like) for width in widths}
            self.d_weights = {weight.shape: torch.empty_like(weight) for weight in (*self.weights, self.head)}
            self.d_attended = torch.randn_like(self.qkv[0])

    def run(self) -> None:
        """Run all packs."""
        for pack in self.packs:
            tokens = sum(pack.lengths)
            for weight in self.weights:
                self._product(weight, tokens, self.outputs[weight.shape[0]])
            for queries, keys in pack.attended * self.attentions:
                self._attention(queries, keys)
            for begin in range(0, pack.scored, self.head_rows):
                self._product(self.head, min(self.head_rows, pack.scored - begin), self.logits)

    def _product(self, weight: Tensor, rows: int, outputs: Tensor) -> None:
        x, y = self.inputs[weight.shape[1]][:rows], outputs[:rows]
        with torch.no_grad():
            torch.mm(x, weight.T, out=y)
            if self.backward:
                torch.mm(y, weight, out=self.d_inputs[weight.shape[1]][:rows])
                torch.mm(y.T, x, out=self.d_weights[weight.shape])

    def _attention(self, queries: int, keys: int) -> None:
        sizes = (queries, keys, keys)
        q, k, v = (x[:, :, :n].detach().requires_grad_(self.backward) for x, n in zip(self.qkv, sizes, strict=True))
        with torch.set_grad_enabled(self.backward):
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=queries == keys)
            if self.backward:
                torch.autograd.grad(attended, (q, k, v), self.d_attended[:, :, :queries])


def fastest_products(
    model: PreTrainedModel, packs: Sequence[Pack], dtype: torch.dtype, *, backward: bool = False
) -> Callable[[], None]:
    """Return the fastest of the products with a few and with many rows of the head at once, and with attention in their
    dtype and in float32: in bfloat16 torch's backward on a CPU takes two to three times as long for short segments.

    Args:
        model, packs, dtype, backward: as for Products.
    """
    attends = {dtype, torch.float32} if backward else {dtype}
    ways = [
        Products(model, packs, dtype, backward=backward, head_rows=rows, attention_dtype=attention).run
        for rows in HEAD_ROWS
        for attention in attends
    ]
    return fastest(ways)
