"""The score sweep: the engine under every objective. ``api.py`` has ``sweep``; docs/engine.md explains the design."""

from .api import CrossEntropy, Sweep, sweep
from .plan import DEFAULT_WORKSPACE

__all__ = ["DEFAULT_WORKSPACE", "CrossEntropy", "Sweep", "sweep"]
