"""run_mlps_in_blocks: the gated MLPs of a LLaMA or Mistral on the CPU, a block of rows at a time.

An MLP is a function of each row by itself, and its four intermediates are several times as wide as its input. For a
whole pack they are so large that the C library returns their memory to the system after every layer and has to ask for
it again: a pack of 1,858 tokens of smollm2 took 330,000 page faults. The intermediates of a block are reused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mistral.modeling_mistral import MistralMLP

BLOCK_ROWS = 512
"""rows of a block: enough for products at full speed, few enough that memory is reused"""


class _LlamaBlocks(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return _in_blocks(super().forward, x)


class _MistralBlocks(MistralMLP):
    def forward(self, x: Tensor) -> Tensor:
        return _in_blocks(super().forward, x)


BLOCKS: dict[type[nn.Module], type[nn.Module]] = {LlamaMLP: _LlamaBlocks, MistralMLP: _MistralBlocks}


def run_mlps_in_blocks(model: PreTrainedModel) -> None:
    """Let the MLPs of a model on the CPU run in blocks of BLOCK_ROWS rows wherever no gradient is recorded.

    Parameters, their names and the forward with gradients stay as they are, as does an MLP of any other class.

    Args:
        model: the model, which is changed.
    """
    if model.device.type != "cpu":
        return
    for module in model.modules():
        module.__class__ = BLOCKS.get(type(module), type(module))


def _in_blocks(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    rows = x.shape[-2]
    if torch.is_grad_enabled() or rows <= BLOCK_ROWS:
        return forward(x)
    return torch.cat([forward(block) for block in x.chunk(-(-rows // BLOCK_ROWS), -2)], -2)
