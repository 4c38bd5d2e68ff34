"""Training data: documents, tokenizers, token rows, the corpus mixture and the batch loader."""
