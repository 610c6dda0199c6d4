"""Instruction-response pairs: reading them from any file or data set, and writing files atomically."""
