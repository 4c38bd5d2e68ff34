"""Pipelines that run CPT, SFT, DPO and export in one command and write a report."""
