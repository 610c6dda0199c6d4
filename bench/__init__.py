"""Benchmarks and studies; run each with ``python -m bench.NAME`` from the repository root."""
