"""A sandbox that runs generated code with limits."""
