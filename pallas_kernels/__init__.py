"""Attention kernels for TPUs, each next to a reference in plain ``jnp``."""
