"""What mutual alignment adds to a checkpoint: one file beside the model's, which anything can still load."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ...errors import UserError
from ...models.projection_heads import FILE, PREFIX, AlignmentHead
from ..synthetic_weight import SyntheticWeight

_MEANS = "synthetic_weight.means"


def write(folder: str | os.PathLike[str], head: dict[str, Tensor], synthetic_weight: SyntheticWeight) -> None:
    """The weights of the projection heads (empty where there are none), and the running means behind alpha."""
    tensors = {PREFIX + name: weight for name, weight in head.items()}
    if synthetic_weight.means is not None:
        tensors[_MEANS] = synthetic_weight.means
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, Path(folder) / FILE)


def is_in(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a checkpoint has the file."""
    return (Path(folder) / FILE).is_file()


def read(folder: str | os.PathLike[str], head: AlignmentHead | None, synthetic_weight: SyntheticWeight) -> None:
    """Restores both. UserError where the file is missing or does not fit the heads."""
    path = Path(folder) / FILE
    if not is_in(folder):
        raise UserError(f"{path} is missing: this checkpoint was not written by a trainer with mutual alignment")
    tensors = load_file(path)
    synthetic_weight.means = tensors.pop(_MEANS, None)
    weights = {name.removeprefix(PREFIX): weight for name, weight in tensors.items()}
    if head is None:
        return
    found, wanted = ({name: list(w.shape) for name, w in side.items()} for side in (weights, head.state_dict()))
    if found != wanted:
        raise UserError(
            f"{path} holds projection heads of other shapes ({found or 'none'}) than this run's ({wanted}): give the "
            "projection_dim it was trained with"
        )
    head.load_state_dict(weights)
