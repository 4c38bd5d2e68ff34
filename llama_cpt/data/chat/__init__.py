"""Chat data: formats, templates, length limits and packing."""
