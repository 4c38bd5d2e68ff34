"""What was gained and what was forgotten."""
