"""The training command: ``python -m llama_cpt.train CONFIG [--section.field value ...]``."""

import argparse
import sys
import time

from llama_cpt.config.loading import load_config
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.distributed import distributed_session
from llama_cpt.runtime.errors import one_line_errors
from llama_cpt.training.run import build_run
from llama_cpt.training.trace import NO_STEPS, steps_to_trace
from llama_cpt.training.trainer import fit


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.train",
        description="Train on an exact mixture of languages. Missing token rows are prepared "
        "first; a run whose output folder exists resumes from its last checkpoint.",
        epilog="Every field of the config is an option; `CONFIG --help` lists them with their "
        "values. Exit status: 0 done, 2 wrong option, 75 stopped by SIGTERM and saved, 78 user "
        "error, 130 stopped by Ctrl-C and saved, 134 another host was lost; the full list is in "
        "docs/guide/many_hosts.md.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "config", nargs="?", help="a config file in Python, or the config.json of a run"
    )
    parser.add_argument(
        "--allow-change",
        metavar="FIELD",
        action="append",
        default=[],
        help="resume although this field (dotted name or section) differs from the saved run",
    )
    parser.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        default="",
        help="trace these steps, such as 10:13, for XProf and Perfetto, in the run's folder",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run the command with ``arguments`` and return its exit status."""
    started = time.time()
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if options.config is None or {"-h", "--help"} & set(overrides):
        parser.print_help()
        if options.config is None:
            return 0
    profile = steps_to_trace(options.profile) if options.profile else NO_STEPS
    config = load_config(options.config, overrides)
    with distributed_session():
        run = build_run(config, make_mesh(config.mesh))
        outcome = fit(run, options.allow_change, started=started, profile=profile)
        return outcome.value


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
