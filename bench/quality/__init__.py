"""Study: does mutual alignment help? Run it with ``python -m bench.quality.study``."""
