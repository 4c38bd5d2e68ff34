"""Task files in the format of lm-evaluation-harness, and loaders of benchmarks on disk."""
