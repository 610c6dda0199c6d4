"""The score sweep, the engine under every objective; docs/engine.md explains its design."""

from .api import CrossEntropy, Sweep, sweep
from .plan import DEFAULT_WORKSPACE_BYTES

__all__ = ["DEFAULT_WORKSPACE_BYTES", "CrossEntropy", "Sweep", "sweep"]
