"""The report on training runs: a page with curves, tables and differences of configs."""
