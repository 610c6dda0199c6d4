"""The GPU run: correctness, products, our ops, variants, profiles and peers; see `python -m bench device --help`."""
