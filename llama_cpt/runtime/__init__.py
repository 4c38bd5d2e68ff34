"""Code shared by all commands: errors, retries, processes, logs, progress, metrics, storage."""
