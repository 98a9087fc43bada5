"""Benchmarks: figures with ratios, never timed tests."""
