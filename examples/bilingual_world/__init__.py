"""A small invented world, described in English, Chinese and Arabic."""
