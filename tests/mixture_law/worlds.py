"""Synthetic tables of runs with known losses and optima."""

from dataclasses import fields, replace

import numpy as np

from llama_cpt.mixture_law.law import Law, Recommendation
from llama_cpt.mixture_law.runs_table import RunsTable

ALMR = (0.1, 0.3, 0.5, 0.7, 0.9)
RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
BASE = {"additional": 4.57, "original": 2.24}


def recommendation_of(law: Law) -> Recommendation:
    """Return the recommendation of a law; fails if there is a refusal instead."""
    assert law.recommendation, law.refusal
    return law.recommendation


def make_runs(almr, learning_rate, additional, original, **columns) -> RunsTable:
    """Return a table with one size and budget; ``columns`` replaces the default columns."""
    count = len(almr)
    values = {
        "run": np.array([f"run{i}" for i in range(count)]),
        "pair": np.full(count, "en-zh"),
        "parameters": np.full(count, 1e6),
        "tokens": np.full(count, 2e7),
        "batch_tokens": np.full(count, np.nan),
        "steps": np.full(count, 600),
        "schedule": np.full(count, "wsd"),
        "mixture_order": np.full(count, "interleaved"),
        "seed": np.zeros(count),
        "base_additional": np.full(count, BASE["additional"]),
        "base_original": np.full(count, BASE["original"]),
    } | columns
    return RunsTable(
        almr=np.asarray(almr, float),
        learning_rate=np.asarray(learning_rate, float),
        additional=np.asarray(additional, float),
        original=np.asarray(original, float),
        unit="bits per byte",
        **values,
    )


def grid(almr=ALMR, rates=RATES) -> tuple[np.ndarray, np.ndarray]:
    """Return the ratio and the learning rate of every combination, as flat arrays."""
    ratios, peaks = np.meshgrid(almr, rates, indexing="ij")
    return ratios.ravel(), peaks.ravel()


def plausible_losses(almr, learning_rate) -> dict[str, np.ndarray]:
    """Return losses that no form describes exactly, similar to those of a small model."""
    almr, x = np.asarray(almr), np.log(np.asarray(learning_rate) / 3e-3)
    learned = 0.027 * np.log((almr + 0.01) / 0.15) * (1 + 0.13 * np.tanh(x)) + 0.0133 * x
    forgotten = 0.0305 * np.exp(0.4 * x) * -np.log(1.01 - almr) + 0.0082 * x - 0.0036
    return {
        "additional": BASE["additional"] * (0.65 - learned + 0.006 * x**2),
        "original": BASE["original"] * np.exp(forgotten),
    }


def plausible(noise=0.002, seed=0, almr=ALMR, rates=RATES, **columns) -> RunsTable:
    """Return runs on a grid with the losses of ``plausible_losses`` and noise."""
    almr, rates = grid(almr, rates)
    losses = plausible_losses(almr, rates)
    return noisy(almr, rates, losses, noise, seed, **columns)


def noisy(almr, rates, losses, noise, seed, **columns) -> RunsTable:
    """Return runs with independent Gaussian noise added to the log losses."""
    rng = np.random.default_rng(seed)
    additional, original = (
        losses[group] * np.exp(noise * rng.standard_normal(len(almr))) for group in BASE
    )
    return make_runs(almr, rates, additional, original, **columns)


def joined(*tables: RunsTable) -> RunsTable:
    """Return one table with the runs of several tables."""
    arrays = {
        field.name: np.concatenate([getattr(table, field.name) for table in tables])
        for field in fields(RunsTable)
        if field.name != "unit"
    }
    return replace(tables[0], **arrays)


def sized(parameters, exponent=0.5, level=0.1, tokens=2e7, almr=ALMR, rates=RATES) -> RunsTable:
    """Return runs of a given model size.

    The optimal learning rate is proportional to size^-exponent, the losses to size^-level.
    """
    grown = parameters / 1e6
    almr, rates = grid(almr, rates)
    losses = plausible_losses(almr, rates * grown**exponent)
    losses = {group: loss * grown**-level for group, loss in losses.items()}
    columns = {f"base_{g}": np.full(len(almr), b * grown**-level) for g, b in BASE.items()}
    columns |= {"parameters": np.full(len(almr), parameters), "tokens": np.full(len(almr), tokens)}
    return noisy(almr, rates, losses, 0.002, int(parameters) % 1000 + 1, **columns)
