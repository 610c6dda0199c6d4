"""Backends: the kernels that process a chunk of raw scores. No objective depends on the backend that runs.

``cpu`` is the compiled module ``main_kernels._C``. ``triton`` runs on CUDA devices, with the CUDA kernels of ``_C`` if
it has them; it is imported when it is first needed. ``plain`` is ordinary torch, on any device and in float64.
"""

from .interface import Backend
from .registry import backend_report, get_backend, select_backend, use_backend
from .structs import ScoreMap

__all__ = ["Backend", "ScoreMap", "backend_report", "get_backend", "select_backend", "use_backend"]
