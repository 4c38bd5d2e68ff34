"""The command that trains many runs: ``python -m llama_cpt.sweep CONFIG``."""

import argparse
import re
import sys

from llama_cpt.config.loading import load_config
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.runtime.distributed import require_single_process
from llama_cpt.runtime.errors import UsageError, one_line_errors
from llama_cpt.sweeps.cost import chip_hours, fit_to_budget
from llama_cpt.sweeps.preview import describe_sweep, trial_table
from llama_cpt.sweeps.runner import run_sweep
from llama_cpt.sweeps.trials import make_chains


def main(arguments: list[str]) -> int:
    """Parse, then list, propose or run; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.sweep",
        description="Train a config at every point of a grid (ratio, learning rate, size, tokens, "
        "seed, any field) and put all held-out losses into one results.csv, which `python -m "
        "llama_cpt.fit_law` reads. Trials that have ended are not run again: stop it at any point "
        "and give the same command. A trial that diverges or fails is noted; the others go on.",
        epilog="A config defines `config = SweepConfig(...)`; every field is an option: `CONFIG "
        "--help` lists them, a trial's as `--train.num-steps 100`. Exit status: 0 all trials have "
        "ended, 75 stopped by SIGTERM and saved, 78 user error, 130 stopped by Ctrl-C and "
        "saved.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("config", nargs="?", help="a sweep's config, in Python or JSON")
    parser.add_argument(
        "--dry-run", action="store_true", help="list trials, tokens and chip-hours; train nothing"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="CHIP_HOURS",
        help="propose the grid that fits, its values evenly thinned; train nothing",
    )
    parser.add_argument(
        "--worker",
        default="1/1",
        metavar="K/N",
        help="this process is the K-th of N that share the sweep's folder; what another has lost "
        "is taken over five minutes after its last sign of life",
    )
    options, overrides = parser.parse_known_args(arguments)
    if options.config is None or {"-h", "--help"} & set(overrides):
        parser.print_help()
        if options.config is None:
            return 0
    require_single_process("sweep")
    sweep = load_config(options.config, overrides, SweepConfig)
    worker, workers = _share(options.worker)
    if options.budget is not None:
        sweep = fit_to_budget(sweep, options.budget)
        print(describe_sweep(sweep))
    trials = [trial for chain in make_chains(sweep) for trial in chain]
    if options.dry_run or options.budget is not None:
        print(trial_table(sweep, trials))
        return 0
    hours = chip_hours(sweep, trials)
    print(f"{sweep.output}: {len(trials)} trials, {hours:.3g} chip-hours of {sweep.chip}")
    return run_sweep(sweep, worker, workers).value


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--worker {text}: K/N, such as 3/16, K from 1 to N.")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
