"""attach, detach, pop_head: projection heads as a submodule of the trained model, outside of what the model saves.

As a submodule, optimizer and sharding include them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...errors import UserError
from ...models.projection_heads import AlignmentHead

NAME = "alignment_head"


def attach(model: nn.Module, head: AlignmentHead) -> None:
    """Make `head` a submodule of a causal language model, and exclude it from the model's saved weights."""
    trained = next((p for p in model.parameters() if p.requires_grad), None)
    if trained is None:
        raise UserError("no parameter of the model requires a gradient: unfreeze it, or pass a peft_config")
    model.add_module(NAME, head.to(trained.device, trained.dtype))
    names = {f"{NAME}.{name}" for name in head.state_dict()}
    pretrained: Any = model  # a PreTrainedModel; its list may be None
    pretrained._keys_to_ignore_on_save = {*(pretrained._keys_to_ignore_on_save or ()), *names}


def detach(model: nn.Module) -> None:
    """Remove the heads: as a part of the model they would be in its state dict, and in the next trainer's optimizer."""
    if not hasattr(model, NAME):
        return
    delattr(model, NAME)
    pretrained: Any = model
    ignored = {name for name in pretrained._keys_to_ignore_on_save if not name.startswith(f"{NAME}.")}
    pretrained._keys_to_ignore_on_save = ignored or None


def pop_head(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the head's weights from a model's state dict and return them, for any wrapper of the model."""
    names = [name for name in state_dict if f".{NAME}." in f".{name}"]
    return {name.rpartition(f"{NAME}.")[2]: state_dict.pop(name) for name in names}
