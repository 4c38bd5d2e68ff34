"""Attention kernels for TPUs in Pallas, and a reference implementation in ``jax.numpy``."""
