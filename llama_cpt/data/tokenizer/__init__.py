"""Tokenizers: loading and export."""
