"""The device mesh, shardings, and computations with explicit partitioning over mesh axes."""
