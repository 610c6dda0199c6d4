"""The Triton kernels compiled ahead of time, without a GPU; see `python -m bench aot --help`."""
