"""The projection heads: from pooled states to the space in which pairs are compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import UserError

NAME = "alignment_head"


class AlignmentHead(nn.Module):
    """One linear map a side, [N, D] -> [N, dim], both started at the same orthogonal projection, so that x and y can be
    compared from the first step on.

    It is a submodule of the model that is trained (optimiser and sharding see it) but no part of the model that is
    saved: its weights go into a file of their own beside the model's (checkpoint.py).
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


def part_of(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes the head's weights out of a model's state dict, whatever wraps the model."""
    names = [name for name in state_dict if f".{NAME}." in f".{name}"]
    return {name.rpartition(f"{NAME}.")[2]: state_dict.pop(name) for name in names}
