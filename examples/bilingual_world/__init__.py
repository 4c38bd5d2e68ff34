"""A small invented world, told in two languages, and in a third when asked."""
