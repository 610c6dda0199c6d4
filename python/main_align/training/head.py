"""The projection heads: from pooled states to the space in which pairs are compared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UserError

NAME = "alignment_head"
FILE = f"{NAME}.safetensors"


class AlignmentHead(nn.Module):
    """One linear map a side, [N, D] -> [N, dim], both started at the same orthogonal projection, so that x and y can be
    compared from the first step on.

    It is a submodule of the model that is trained (optimiser and sharding see it) but no part of the model that is
    saved: its weights go into a file of their own, ``alignment_head.safetensors``, beside the model's.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.x, self.y = nn.Linear(width, dim), nn.Linear(width, dim)
        nn.init.orthogonal_(self.x.weight)
        nn.init.zeros_(self.x.bias)
        self.y.load_state_dict(self.x.state_dict())

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x[N, D], y[N, D] -> [N, dim] each."""
        dtype = self.x.weight.dtype
        return self.x(x.to(dtype)), self.y(y.to(dtype))


def attach(model: nn.Module, head: AlignmentHead) -> None:
    """Makes `head` a submodule of a causal language model, left out of what the model saves of itself."""
    like = next((p for p in model.parameters() if p.requires_grad), None)
    if like is None:
        raise UserError("no parameter of the model requires a gradient: unfreeze it, or give a peft_config")
    model.add_module(NAME, head.to(like.device, like.dtype))
    ours = {f"{NAME}.{name}" for name in head.state_dict()}
    saved: Any = model  # a PreTrainedModel; its own list may be None
    saved._keys_to_ignore_on_save = {*(saved._keys_to_ignore_on_save or ()), *ours}


def write(folder: str | os.PathLike[str], weights: dict[str, Tensor]) -> None:
    """`weights` of a head, by their names inside it, into its file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, Path(folder) / FILE)


def read(folder: str | os.PathLike[str], head: AlignmentHead) -> None:
    """Loads the head's file of a checkpoint. UserError where there is none or it does not fit."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(f"{path} is missing: this checkpoint was not written by a trainer with a projection head")
    try:
        head.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise UserError(f"{path} does not fit: {error}. Give the projection_dim it was trained with.") from None


def part_of(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes the head's weights out of a model's state dict, whatever wraps the model."""
    marker = f"{NAME}."
    names = [name for name in state_dict if f".{name}".find(f".{marker}") >= 0]
    return {name.rpartition(marker)[2]: state_dict.pop(name) for name in names}
