"""Chat data: file formats, chat templates, length limits and packing into rows."""
