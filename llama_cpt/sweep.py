"""The command that trains the trials of a sweep: ``python -m llama_cpt.sweep CONFIG``."""

import argparse
import re
import sys

from llama_cpt.config.loading import config_parser, load_config, parse_arguments
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.runtime.distributed import require_single_process
from llama_cpt.runtime.errors import UsageError, one_line_errors
from llama_cpt.sweeps.cost import (
    chip_hours,
    describe_sweep,
    fit_to_budget,
    heldout_cost,
    trial_table,
)
from llama_cpt.sweeps.runner import run_sweep
from llama_cpt.sweeps.trials import make_chains
from llama_cpt.weights.initial_model import with_model


def _parser() -> argparse.ArgumentParser:
    parser = config_parser(
        "sweep",
        description="Train a config at every point of a grid (ratio, learning rate, size, tokens, "
        "seed, any field) and write all held-out losses to one results.csv, which `python -m "
        "llama_cpt.fit_law` reads. Finished trials are not repeated: the same command resumes "
        "after a stop at any point. A trial that diverges or fails is recorded and does not stop "
        "the others.",
        epilog="A config defines `config = SweepConfig(...)`. Every field is an option; `CONFIG "
        "--help` lists them. Fields of the trials start with `--train`, such as `--train.num-steps "
        "100`. Exit status: 0 all trials have ended, 75 stopped by SIGTERM and saved, 78 user "
        "error, 130 stopped by Ctrl-C and saved.",
        config_help="the config of a sweep, in Python or JSON",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list trials, tokens and chip-hours without training"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="CHIP_HOURS",
        help="print a grid within this budget, thinned evenly, without training",
    )
    parser.add_argument(
        "--worker",
        default="1/1",
        metavar="K/N",
        help="run as the K-th of N processes that share the sweep's folder; a process takes over a "
        "trial five minutes after the last heartbeat of the trial's process",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run or describe the sweep of the config named in ``arguments`` and return the exit status."""
    options, overrides = parse_arguments(_parser(), arguments)
    require_single_process("sweep")
    sweep = with_model(load_config(options.config, overrides, SweepConfig))
    worker, workers = _worker_share(options.worker)
    if options.budget is not None:
        sweep = fit_to_budget(sweep, options.budget)
        print(describe_sweep(sweep))
    trials = [trial for chain in make_chains(sweep) for trial in chain]
    if options.dry_run or options.budget is not None:
        print(trial_table(sweep, trials))
        print(heldout_cost(sweep, trials))
        return 0
    hours = chip_hours(sweep, trials)
    print(f"{sweep.output}: {len(trials)} trials, {hours:.3g} chip-hours of {sweep.chip}")
    return run_sweep(sweep, worker, workers).value


def _worker_share(text: str) -> tuple[int, int]:
    """Return (K, N) from the text ``K/N``; raise UsageError unless K is from 1 to N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--worker {text} must be K/N with K from 1 to N, such as 3/16.")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
