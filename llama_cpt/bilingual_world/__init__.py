"""A small invented world, told in two languages."""
