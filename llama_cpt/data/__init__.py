"""Data: documents, tokenizers, token rows, their mixture and the loader."""
