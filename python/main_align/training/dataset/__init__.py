"""Data sets of pairs: reading, checks of rows, packing and collation."""
