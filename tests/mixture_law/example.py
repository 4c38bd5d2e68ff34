"""A synthetic loss surface, a table of runs on it, and a surface that predicts it exactly."""

import csv

import numpy as np

from llama_cpt.mixture_law.intervals import Interval
from llama_cpt.mixture_law.surface import Surface

BASE = {"additional": 4.0, "original": 1.0}
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
HEADER = (
    "run,pair,parameters,tokens,step,almr,mixture_order,learning_rate,schedule,batch_tokens,seed,"
    "tokenizer,corpus,group,loss,bits_per_byte,base_loss,base_bits_per_byte"
)


def truth(almr, learning_rate, parameters=1e6, tokens=1e8):
    """Return bits per byte by group.

    A higher learning rate lowers the additional loss and raises the original one.
    """
    almr, learning_rate = np.asarray(almr, float), np.asarray(learning_rate, float)
    small = (1e6 / parameters) ** 0.08
    rate = np.log10(learning_rate / 2e-3) + 0.15 * np.log10(parameters / 1e6)
    progress = (tokens / 1e8) ** -0.15
    new = 1.5 * small * progress * (1 + 0.16 * (1 - almr) ** 1.4 + 0.09 * (rate - 0.25 * almr) ** 2)
    forgotten = 0.30 * 10 ** (0.75 * rate) * almr**1.6 + 0.05 * almr**4
    old = small * (0.985 + forgotten - 0.03 * (1 - almr) * np.exp(-((rate + 0.4) ** 2)))
    return {"additional": new, "original": old}


def table(
    sizes=(1e6, 4e6), ratios=RATIOS, rates=RATES, noise=0.002, pairs=("zh onto en",), seeds=1
):
    """Return the rows of a table of runs on a grid, with five evaluations per run."""
    random = np.random.default_rng(0)
    rows = []
    for pair in pairs:
        for size in sizes:
            for almr in ratios:
                for rate in rates:
                    for seed in range(seeds):
                        rows += _run(random, noise, pair, size, almr, rate, seed)
    return rows


def _run(random, noise, pair, size, almr, rate, seed):
    """Return the rows of one run."""
    small = (1e6 / size) ** 0.08
    end = truth(almr, rate, size)
    rows = []
    for share in (0.02, 0.1, 0.3, 0.6, 1.0):
        for group, corpus in (("additional", "zh"), ("original", "en")):
            base = BASE[group] * small
            if group == "additional":
                value = base + (end[group] - base) * share**0.25
            else:
                bump = 0.25 * (end[group] - 0.97 * small) * np.sin(np.pi * share**0.5)
                value = base + (end[group] - base) * share**0.2 + bump
            value *= np.exp(random.normal(0, noise))
            rows.append(
                {
                    "run": f"{pair} {size:g} {almr:g} {rate:g} {seed}",
                    "pair": pair,
                    "parameters": size,
                    "tokens": 1e8 * share,
                    "step": int(1000 * share),
                    "almr": almr,
                    "mixture_order": "interleaved",
                    "learning_rate": rate,
                    "schedule": "cosine",
                    "batch_tokens": 1e5,
                    "seed": seed,
                    "tokenizer": "a",
                    "corpus": corpus,
                    "group": group,
                    "loss": value * 2,
                    "bits_per_byte": value,
                    "base_loss": base * 2,
                    "base_bits_per_byte": base,
                }
            )
    return rows


def write_table(path, rows):
    """Write rows as a CSV file and return its path."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER.split(","))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


class TruthSurface(Surface):
    """A surface that predicts ``truth``, with intervals of ±1 %."""

    def __init__(self):
        pass

    def predict(self, almr, learning_rate, parameters=None, tokens=None):
        losses = truth(almr, learning_rate, parameters or 4e6, tokens or 1e8)
        return {group: Interval(v, v * 0.99, v * 1.01) for group, v in losses.items()}

    def base(self, parameters=None):
        return {g: v * (1e6 / (parameters or 4e6)) ** 0.08 for g, v in BASE.items()}
