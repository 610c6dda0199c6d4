"""use_cpu_layers: the norms, rotary embeddings and gated MLPs of a LLaMA or Mistral on the CPU.

Norms, rotary embeddings and SwiGLU are one pass each, forward and backward. Where no gradient is recorded, an MLP runs
a block of rows at a time: it is a function of each row by itself, and its intermediates are several times as wide as
its input. For a whole pack they are so large that the C library returns their memory to the system after every layer
and has to ask for it again: a pack of 1,858 tokens of smollm2 took 330,000 page faults. The intermediates of a block
are reused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm

from main_kernels.layers import fits, rms_norm, rotary, silu_mul

from .packed_attention import PACKED, packed_attention

BLOCK_ROWS = 1024
"""rows of a block, three quarters as many to half as many again: few enough that memory is reused. With AVX-512, the
products of 278 rows of smollm2 in float32 took 104 microseconds a row, those of 512 rows 90, of 768 rows 80, of 1,858
rows 73"""


class _LlamaBlocks(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return _mlp(self, super().forward, x)


class _MistralBlocks(MistralMLP):
    def forward(self, x: Tensor) -> Tensor:
        return _mlp(self, super().forward, x)


class _LlamaNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return _norm(self, super().forward, hidden_states)


class _MistralNorm(MistralRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return _norm(self, super().forward, hidden_states)


class _LlamaRotary(LlamaAttention):
    def forward(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        return _attention(self, super().forward, None, hidden_states, *arguments, **options)


class _MistralRotary(MistralAttention):
    def forward(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        window = getattr(self.config, "sliding_window", None)
        return _attention(self, super().forward, window, hidden_states, *arguments, **options)


CPU_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    LlamaAttention: _LlamaRotary,
    MistralAttention: _MistralRotary,
    LlamaMLP: _LlamaBlocks,
    MistralMLP: _MistralBlocks,
    LlamaRMSNorm: _LlamaNorm,
    MistralRMSNorm: _MistralNorm,
}


def use_cpu_layers(model: PreTrainedModel) -> None:
    """Let the norms, rotary embeddings and MLPs of a model on the CPU use CPU kernels, in training too.

    Parameters and their names stay as they are, as does a module of any other class.

    Args:
        model: the model, which is changed.
    """
    if model.device.type != "cpu":
        return
    for module in model.modules():
        module.__class__ = CPU_LAYERS.get(type(module), type(module))


def _norm(module: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon) if fits(x, module.weight) else forward(x)


def _attention(
    module: Any, forward: Callable[..., Any], window: int | None, x: Tensor, *arguments: Any, **options: Any
) -> Any:
    """Attend within the segments of a packed row [1, T, D]; anything else is the module's own forward's."""
    angles = options.get("position_embeddings")
    keeps_keys = any(options.get(name) is not None for name in ("cache", "past_key_values", "past_key_value"))
    is_packed = module.config._attn_implementation == PACKED and options.get("cu_seq_lens_q") is not None
    is_other = bool(arguments) or keeps_keys or not is_packed or x.shape[0] != 1
    if is_other or angles is None or not (fits(x) and fits(*angles)):
        return forward(x, *arguments, **options)
    shape = (*x.shape[:-1], -1, module.head_dim)
    query, key, value = (project(x).view(shape) for project in (module.q_proj, module.k_proj, module.v_proj))
    if not fits(query, key) or angles[0].dtype not in (query.dtype, torch.float32):
        return forward(x, *arguments, **options)  # a projection of another class may give another dtype
    attended, _ = packed_attention(
        module,
        rotary(query, *angles),
        rotary(key, *angles),
        value.transpose(1, 2),
        options.pop("attention_mask", None),
        scaling=module.scaling,
        dropout=module.attention_dropout if module.training else 0.0,
        sliding_window=window,
        **options,
    )
    return module.o_proj(attended.reshape(*x.shape[:-1], -1)), None


def _mlp(module: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return forward(x)
    is_silu = module.config.hidden_act == "silu"

    def of_block(block: Tensor) -> Tensor:
        gate, up = module.gate_proj(block), module.up_proj(block)
        return module.down_proj(silu_mul(gate, up) if is_silu and fits(gate, up) else module.act_fn(gate) * up)

    if torch.is_grad_enabled():  # what a block kept for its gradient would not be reused
        return of_block(x)
    blocks = [of_block(block) for block in x.chunk(max(1, round(x.shape[-2] / BLOCK_ROWS)), -2)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -2)
