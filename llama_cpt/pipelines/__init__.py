"""Pipelines: CPT, SFT, DPO and export in one command, with a report."""
