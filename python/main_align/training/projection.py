"""attach, part_of: the projection heads (heads.py) as a submodule of the model that is trained, so that optimiser and
sharding see them, but no part of the model that is saved."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from ..models.projection_heads import AlignmentHead

NAME = "alignment_head"


def attach(model: nn.Module, head: AlignmentHead) -> None:
    """Makes `head` a submodule of a causal language model, left out of what the model saves of itself."""
    like = next((p for p in model.parameters() if p.requires_grad), None)
    if like is None:
        raise UserError("no parameter of the model requires a gradient: unfreeze it, or give a peft_config")
    model.add_module(NAME, head.to(like.device, like.dtype))
    ours = {f"{NAME}.{name}" for name in head.state_dict()}
    saved: Any = model  # a PreTrainedModel; its own list may be None
    saved._keys_to_ignore_on_save = {*(saved._keys_to_ignore_on_save or ()), *ours}


def part_of(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes the head's weights out of a model's state dict, whatever wraps the model."""
    names = [name for name in state_dict if f".{NAME}." in f".{name}"]
    return {name.rpartition(f"{NAME}.")[2]: state_dict.pop(name) for name in names}
