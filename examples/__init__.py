"""Example programs: a demo and a study on a synthetic world, and a download of public text."""

import llama_cpt as llama_cpt  # Reports missing packages in one line.
