"""Documents, tokens, token rows and their mixture."""
