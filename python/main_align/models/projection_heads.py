"""AlignmentHead: projection heads from pooled states to the space in which pairs are compared."""

from __future__ import annotations

import hashlib
import os

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from ..errors import UserError
from .checkpoint import check_revision

FILE = "alignment.safetensors"
"""file with the heads, beside a trained model"""
PREFIX = "head."
"""prefix of their weights in that file"""


class AlignmentHead(nn.Module):
    """Project each side with its own linear map.

    Both maps start as the same orthogonal projection, so x and y are comparable from the first step.
    `AlignmentHead.from_pretrained(folder)` loads the heads that a trainer with mutual alignment saved beside its model;
    `Scorer(folder, heads=folder)` compares pairs through them.

    Args:
        width: D, the model's hidden size.
        dim: width of the projections.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.x, self.y = (nn.Linear(width, dim, dtype=torch.float32) for _ in range(2))
        nn.init.orthogonal_(self.x.weight)
        nn.init.zeros_(self.x.bias)
        self.y.load_state_dict(self.x.state_dict())

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *, revision: str | None = None) -> AlignmentHead:
        """Load trained heads, in float32 on the CPU.

        Args:
            name: folder or hub id of a model that was trained with mutual alignment.
            revision: branch, tag or commit of a hub id.

        Raises:
            UserError: `name` has no heads, or their file is damaged.
        """
        name = os.fspath(name)
        check_revision(name, revision)
        try:
            path = cached_file(name, FILE, revision=revision)
            tensors = load_file(str(path))
            weights = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
        except Exception as error:  # missing, foreign and damaged files raise different errors
            why = str(error).strip().splitlines()[0]
            raise UserError(
                f"no projection heads can be loaded from {name!r} ({why}): give the folder that a trainer with mutual "
                f"alignment saved, which holds {FILE}"
            ) from error
        if not weights:
            raise UserError(
                f"{name!r} was trained without projection heads (projection_dim=0, or no term that compares "
                "embeddings): leave heads out"
            )
        dim, width = weights["x.weight"].shape
        head = cls(width, dim).requires_grad_(False)
        head.load_state_dict(weights)
        return head

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Project pooled states.

        Args:
            x: [N, D], pooled states of the instructions.
            y: [N, D], pooled states of the responses.

        Returns:
            [N, dim] for each side, not normalised.
        """
        dtype = self.x.weight.dtype
        return self.x(x.to(dtype)), self.y(y.to(dtype))

    def digest(self) -> str:
        """Return the sha256 of the weights."""
        sha = hashlib.sha256()
        for name, weight in self.state_dict().items():
            sha.update(name.encode() + weight.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return f"sha256:{sha.hexdigest()}"
