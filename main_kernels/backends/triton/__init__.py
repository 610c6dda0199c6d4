"""The Triton backend: CUDA devices of compute capability 8.0 and newer. Importing it imports triton.

``tiles.py`` is what becomes of a tile of scores in registers. ``forward.py`` and ``weights.py`` apply it to tiles that
``product.py`` makes, ``chunks.py`` to raw scores that cuBLAS made. ``arguments.py`` has what they are handed.
``combine.py`` is the second stage of every reduction: tiles leave partial sums, which are added in one fixed order, so
the bits do not depend on who finished first.

All of it has been compiled, and run under Triton's interpreter, but never on a GPU.
"""

from .backend import TritonBackend

__all__ = ["TritonBackend"]
