"""Continual pre-training, SFT and DPO of Llama 3 models in a new language, with JAX."""

from fsspec.config import conf

# Several processes can write to one bucket, so a cached listing could lack new files.
conf.setdefault("gcs", {})["use_listings_cache"] = False
