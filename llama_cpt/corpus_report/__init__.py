"""The report on the corpora of a config, and documents that are left out of their rows."""
