"""Training: the compiled step, the training loop, resuming, reports and the watchdog."""
