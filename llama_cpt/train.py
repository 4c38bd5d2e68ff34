"""The command that trains a model: ``python -m llama_cpt.train CONFIG [options]``."""

import argparse
import contextlib
import sys
import time

from etils import epath

from llama_cpt.config.loading import config_parser, load_config, parse_arguments
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.distributed import distributed_session, is_primary
from llama_cpt.runtime.errors import one_line_errors
from llama_cpt.runtime.metrics import FILE, read_lines
from llama_cpt.training.ending import describe_ending
from llama_cpt.training.run import build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trace import NO_STEPS, steps_to_trace
from llama_cpt.training.trainer import fit
from llama_cpt.weights.initial_model import with_model


def _parser() -> argparse.ArgumentParser:
    parser = config_parser(
        "train",
        description="Train on an exact mixture of languages. Missing token rows are prepared "
        "first. A run whose output folder exists resumes from its last checkpoint.",
        epilog="Every field of the config is an option; `CONFIG --help` lists them with their "
        "values. Exit status: 0 done, 2 wrong option, 75 stopped by SIGTERM and saved, 78 user "
        "error, 130 stopped by Ctrl-C and saved, 134 another host was lost; the full list is in "
        "docs/guide/many_hosts.md.",
    )
    parser.add_argument(
        "--allow-change",
        metavar="FIELD",
        action="append",
        default=[],
        help="resume even if this field or section differs from the saved run (dotted name)",
    )
    parser.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        default="",
        help="write a trace of these steps, such as 10:13, to the run's folder (XProf, Perfetto)",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Train a model with the config named in ``arguments`` and return the exit status."""
    started = time.monotonic()
    options, overrides = parse_arguments(_parser(), arguments)
    profile = steps_to_trace(options.profile) if options.profile else NO_STEPS
    config = load_config(options.config, overrides)
    with distributed_session():
        config = with_model(config)
        run = build_run(config, make_mesh(config.mesh))
        outcome = fit(run, options.allow_change, started=started, profile=profile)
        if outcome is Outcome.FINISHED and is_primary():
            # The run is complete, even if its summary cannot be read or printed.
            with contextlib.suppress(OSError):
                print(describe_ending(config, read_lines(epath.Path(config.output) / FILE)))
        return outcome.value


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
