"""Sources: one module per type of input, from bytes to rows. file_formats.py lists the file formats."""
