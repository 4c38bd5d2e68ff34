"""Tables of runs whose truth is known."""

import numpy as np

from llama_cpt.mixture_law.points import Points

ALMR = (0.1, 0.3, 0.5, 0.7, 0.9)
RATES = (3e-4, 6e-4, 1.2e-3, 2.4e-3)
BASE = {"additional": 3.6, "original": 2.0}


def points_of(almr, learning_rate, additional, original, **columns) -> Points:
    """One size, one budget, unless told otherwise."""
    count = len(almr)
    values = {
        "run": np.array([f"run{i}" for i in range(count)]),
        "pair": np.full(count, "en-zh"),
        "parameters": np.full(count, 1e6),
        "tokens": np.full(count, 2e7),
        "steps": np.full(count, 600),
        "schedule": np.full(count, "wsd"),
        "mixture_order": np.full(count, "interleaved"),
        "seed": np.zeros(count),
        "base_additional": np.full(count, BASE["additional"]),
        "base_original": np.full(count, BASE["original"]),
    } | columns
    return Points(
        almr=np.asarray(almr, float),
        learning_rate=np.asarray(learning_rate, float),
        additional=np.asarray(additional, float),
        original=np.asarray(original, float),
        unit="bits per byte",
        **values,
    )


def grid(almr=ALMR, rates=RATES) -> tuple[np.ndarray, np.ndarray]:
    ratios, peaks = np.meshgrid(almr, rates, indexing="ij")
    return ratios.ravel(), peaks.ravel()


def plausible_losses(almr, learning_rate) -> dict[str, np.ndarray]:
    """Like a small study's, of no form: learning, forgetting, and a rate that is too high."""
    x = np.log(np.asarray(learning_rate) / 8.5e-4)
    learned = 1 - (1 + 4 * almr * np.exp(0.8 * x)) ** -0.6
    additional = 3.6 - 1.7 * learned + 0.02 * np.maximum(0, x - 0.3) ** 2
    forgotten = (1 - np.exp(-2.5 * almr)) * (1 - (1 + 0.5 * np.exp(x)) ** -0.7)
    original = 2.0 * (1 + 0.27 * forgotten - 0.03 * (1 - almr) * (1 - np.exp(-np.exp(x))))
    return {"additional": additional, "original": original}
