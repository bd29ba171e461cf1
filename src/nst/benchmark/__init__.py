"""Measurements of speed and memory, one module a subject; `scripts/benchmark.py` runs them."""
