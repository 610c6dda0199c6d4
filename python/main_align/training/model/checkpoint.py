"""write, is_in, read: the file of a checkpoint with the projection heads, the running means and the token count.

The model's own files are unchanged, so any library loads them.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...errors import UserError
from ...models.projection_heads import FILE, PREFIX, AlignmentHead
from ..synthetic_weight import SyntheticWeight

_MEANS = "synthetic_weight.means"
_TOKENS = "num_tokens"


def write(
    folder: str | os.PathLike[str], head: dict[str, Tensor], synthetic_weight: SyntheticWeight, num_tokens: int
) -> None:
    """Write the weights of the projection heads (empty without heads), the running means and the token count."""
    tensors = {PREFIX + name: weight for name, weight in head.items()}
    tensors[_TOKENS] = torch.tensor(num_tokens, dtype=torch.int64, device="cpu")
    if synthetic_weight.means is not None:
        tensors[_MEANS] = synthetic_weight.means
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, Path(folder) / FILE)


def is_in(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a checkpoint has the file."""
    return (Path(folder) / FILE).is_file()


def read(
    folder: str | os.PathLike[str],
    head: AlignmentHead | None,
    synthetic_weight: SyntheticWeight,
    *,
    restores_heads: bool = True,
) -> int:
    """Restore heads and running means, and return the token count.

    Args:
        folder: the checkpoint.
        head: projection heads of this run; None without.
        synthetic_weight: its running means are set.
        restores_heads: False leaves the heads as they are.

    Raises:
        UserError: the file is missing, or its heads differ in shape from those of this run.
    """
    path = Path(folder) / FILE
    if not is_in(folder):
        raise UserError(f"{path} is missing: this checkpoint was not written by a trainer with mutual alignment")
    tensors = load_file(path)
    num_tokens = int(tensors.pop(_TOKENS, 0))
    synthetic_weight.means = tensors.pop(_MEANS, None)
    if not restores_heads:
        return num_tokens
    weights = {name.removeprefix(PREFIX): weight for name, weight in tensors.items()}
    sides = (weights, {} if head is None else head.state_dict())
    saved, expected = ({name: list(weight.shape) for name, weight in side.items()} for side in sides)
    if saved != expected:
        raise UserError(
            f"{path} holds projection heads of other shapes ({saved or 'none'}) than this run's ({expected or 'none'})"
            ": set projection_dim and the weights of the embedding terms to the values of the saved run"
        )
    if head is not None:
        head.load_state_dict(weights)
    return num_tokens
