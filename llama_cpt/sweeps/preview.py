"""Text previews of a sweep's axes, trials and costs."""

from collections.abc import Sequence

from llama_cpt.config.sweep import SweepConfig
from llama_cpt.sweeps.cost import chip_hours
from llama_cpt.sweeps.trials import Trial


def describe_sweep(sweep: SweepConfig) -> str:
    """Return the axes, Sobol points and token budgets of the sweep in the syntax of a config."""
    lines = [
        f'  AxisConfig("{axis.field}", {axis.values})'
        if axis.values
        else f'  AxisConfig("{axis.field}", between={axis.between}, scale="{axis.scale}")'
        for axis in sweep.axes
    ]
    points = [f"  points={sweep.points}"] if sweep.points else []
    budgets = [f"  token_budgets={sweep.token_budgets}"] if sweep.token_budgets else []
    return "\n".join(["proposed:", *lines, *points, *budgets, ""])


def trial_table(sweep: SweepConfig, trials: Sequence[Trial]) -> str:
    """Return a text table with the steps, tokens and chip-hours of each trial, and their sums."""
    rows = [("trial", "steps", "tokens", "chip-hours")]
    rows += [_row(sweep, trial.name, [trial]) for trial in trials]
    rows.append(_row(sweep, f"{len(trials)} trials", trials))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{row[0]:<{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    notes = (
        f"{sweep.chip} at MFU {sweep.mfu:.0%}, which is assumed; loading and evaluation are not "
        "counted. The tokens of a shared stable phase count once."
    )
    return "\n".join([*lines, notes])


def _row(sweep: SweepConfig, name: str, trials: Sequence[Trial]) -> tuple[str, ...]:
    steps = sum(trial.config.num_steps - trial.first_step for trial in trials)
    tokens = sum(trial.own_tokens for trial in trials)
    return name, f"{steps:,}", f"{tokens:,}", f"{chip_hours(sweep, trials):,.3g}"
