"""One module per kind of input file: bytes in, rows out."""
