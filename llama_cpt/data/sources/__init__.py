"""Source files of a corpus, and readers for the documents or chat records in them."""
