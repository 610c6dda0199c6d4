"""MAIN's loop: LoopConfig, MutualAlignmentLoop and read_config.

from main_align.loop import LoopConfig, MutualAlignmentLoop
report = MutualAlignmentLoop(LoopConfig(seed_pairs="pairs.jsonl", output_dir="run")).run()
"""

from .config import LoopConfig
from .config_file import read_config
from .loop import MutualAlignmentLoop

__all__ = ["LoopConfig", "MutualAlignmentLoop", "read_config"]
