"""Source files of a corpus and the documents or records in them."""
