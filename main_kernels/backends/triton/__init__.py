"""The Triton backend, for CUDA devices of compute capability 8.0 and newer. Importing it imports triton.

``epilogue.py`` maps, masks and reduces a tile of scores in registers, with the functions of ``elementary.py``;
``tile_memory.py`` loads and stores what belongs to a tile. ``fused_forward.py`` and ``fused_backward.py`` apply it to
tiles from ``matmul_tile.py``, ``unfused.py`` to raw scores that cuBLAS computed, and ``row_loss.py`` to whole rows of
them. ``two_sided.py`` has shorter fused kernels for ``info_nce``. ``kernel_args.py`` has the structs that kernels
exchange, ``configs.py`` their tile sizes, in rows of ``tile_kinds.py``. Tiles leave partial sums, which
``reduce_partials.py`` adds in a fixed order, so the result does not depend on the order in which programs finish.
``returned_none.py`` repairs Triton 3.6.

All of it has been compiled, and run under Triton's interpreter, but never on a GPU.
"""

from .backend import TritonBackend
from .returned_none import return_none_in_structs

return_none_in_structs()

__all__ = ["TritonBackend"]
