"""Errors, retries, processes, progress, metrics and storage: what every part of a run relies on."""
