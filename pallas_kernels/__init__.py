"""Attention and other kernels, each with its plain-jnp meaning."""
