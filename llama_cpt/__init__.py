"""Continual pre-training, SFT and DPO of Llama-3 in a new language, in JAX."""
