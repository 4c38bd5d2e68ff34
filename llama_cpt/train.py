"""The command that trains a model: ``python -m llama_cpt.train CONFIG [options]``."""

import argparse
import contextlib
import importlib.util
import sys
import time

from etils import epath

from llama_cpt.config.loading import config_parser, load_config, parse_arguments
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.distributed import distributed_session, is_primary
from llama_cpt.runtime.errors import UsageError, UserError, one_line_errors
from llama_cpt.runtime.metrics import FILE, read_lines
from llama_cpt.training.attempt import Probe
from llama_cpt.training.ending import describe_ending
from llama_cpt.training.run import Run, build_run
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
    add = parser.add_argument_group("few-shot probe").add_argument
    message = "benchmarks to measure at each held-out evaluation, as in evaluate --tasks"
    add("--probe", default="", metavar="NAME,...", help=message)
    add("--probe-data", default="", metavar="DIR", help="folder of benchmarks, as evaluate --data")
    add("--probe-shots", type=int, metavar="N", help="worked examples before each question")
    message = "maximum number of questions per benchmark (default: 100)"
    add("--probe-limit", type=int, default=100, metavar="N", help=message)
    return parser


def _probe(options: argparse.Namespace, run: Run) -> Probe | None:
    """Return the probe that the options name, or None."""
    names = list(dict.fromkeys(filter(None, map(str.strip, options.probe.split(",")))))
    if not names:
        return None
    shots, limit = options.probe_shots, options.probe_limit
    for name, value, least in (("--probe-shots", shots, 0), ("--probe-limit", limit, 1)):
        if value is not None and value < least:
            raise UsageError(f"{name}={value} must be at least {least}.")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("--probe needs lm-evaluation-harness: pip install -e '.[eval]'.")
    from llama_cpt.evaluation.few_shot_probe import FewShotProbe

    return FewShotProbe(
        run.config,
        names,
        data=options.probe_data,
        shots=shots,
        limit=limit,
        tokenizer=run.tokenizer,
        mesh=run.program.mesh,
    )


def main(arguments: list[str]) -> int:
    """Train a model with the config named in ``arguments`` and return the exit status."""
    started = time.monotonic()
    options, overrides = parse_arguments(_parser(), arguments)
    profile = steps_to_trace(options.profile) if options.profile else NO_STEPS
    config = load_config(options.config, overrides)
    with distributed_session():
        config = with_model(config)
        run = build_run(config, make_mesh(config.mesh))
        probe = _probe(options, run)
        outcome = fit(run, options.allow_change, started=started, profile=profile, probe=probe)
        if outcome is Outcome.FINISHED and is_primary():
            # The run is complete, even if its summary cannot be read or printed.
            with contextlib.suppress(OSError):
                print(describe_ending(config, read_lines(epath.Path(config.output) / FILE)))
        return outcome.value


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
