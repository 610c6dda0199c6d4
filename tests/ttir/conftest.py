"""Tensors that say they are on a CUDA device, under ttsem alone (see __main__.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from triton.runtime.jit import JITFunction

UNDER_TTSEM = JITFunction.run.__module__ == "ttsem.sanitize"
collect_ignore_glob = [] if UNDER_TTSEM else ["test_*.py"]

launched: set[str] = set()
"""Names of the kernels that were executed."""

if UNDER_TTSEM:
    import torch

    from main_kernels.backends.triton import configs
    from main_kernels.backends.triton.tile_kinds import RowTile, WholeTile

    torch.set_num_threads(1)
    execute = JITFunction.run

    def run(self, *arguments, **options):  # type: ignore[no-untyped-def]
        execute(self, *arguments, **options)
        launched.add(self.__name__)

    JITFunction.run = run

    @pytest.fixture(autouse=True)
    def _seed() -> None:
        torch.manual_seed(0)

    # smaller tiles: what an execution takes depends on the entries of a tile, not on their number
    for name, tiles in list(vars(configs).items()):
        if isinstance(tiles, tuple) and tiles and isinstance(tiles[0], WholeTile):
            small = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 2}
            setattr(configs, name, tuple(replace(tile, **small) for tile in tiles))
        elif isinstance(tiles, RowTile):  # several of them in a row
            setattr(configs, name, replace(tiles, BLOCK_N=64))
    torch.cuda.is_current_stream_capturing = lambda: False

    @pytest.fixture(params=[80, 90], ids=["loads", "descriptors"])
    def architecture(request, monkeypatch):  # type: ignore[no-untyped-def]
        """Compute capability, which decides how tiles are loaded; fewer programs than tiles."""
        monkeypatch.setattr(configs, "architecture", lambda _: request.param)
        monkeypatch.setattr(configs, "multiprocessors", lambda _: 1)
        return request.param
