"""MAIN's loop: two directions train each other, then a filter keeps the pairs on which both agree.

from main_align.loop import LoopConfig, MutualAlignmentLoop
report = MutualAlignmentLoop(LoopConfig(seeds="pairs.jsonl", output_dir="run")).run()
"""

from .config import LoopConfig
from .config_file import read_config
from .loop import MutualAlignmentLoop

__all__ = ["LoopConfig", "MutualAlignmentLoop", "read_config"]
