"""Instruction-response pairs: read from any file or data set, written whole or not at all."""
