"""Training objectives: next-token prediction and preference losses."""
