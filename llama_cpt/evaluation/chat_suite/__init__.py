"""Measurement of what a chat model loses: instructions, languages, refusals, long context."""
