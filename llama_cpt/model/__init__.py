"""Llama-3 and its weights."""
