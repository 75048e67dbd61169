"""Ratios measured in one run on one machine: `python -m benchmarks.<name>` prints a table and one line of JSON."""
