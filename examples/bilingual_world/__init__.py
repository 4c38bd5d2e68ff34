"""A generator of text about a small invented world in English, Chinese and Arabic."""
