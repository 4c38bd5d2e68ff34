"""Benchmarks on disk in the format of lm-evaluation-harness's task files."""
