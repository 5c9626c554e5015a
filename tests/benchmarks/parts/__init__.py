"""The sections of tests/benchmarks/speed.py, and what they share."""
