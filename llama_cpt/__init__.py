"""Continual pre-training, SFT and DPO of Llama-3 in a new language, in JAX."""

import fsspec

# Several processes write to one bucket: what another has written must be seen at once.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
