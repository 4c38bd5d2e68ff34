"""Comparison of a running OpenAI-compatible server with the model that it serves."""
