"""Errors, retries, processes, progress, metrics, tables and storage for every part of a run."""
