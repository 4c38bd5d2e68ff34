"""The command that fits a mixture law: ``python -m llama_cpt.fit_law RESULTS.csv``."""

import argparse
from collections.abc import Mapping, Sequence
import math
import shlex
import sys
from typing import Any

from etils import epath
import numpy as np

from llama_cpt.config.fields import did_you_mean, require_above_zero
from llama_cpt.config.loading import load_config
from llama_cpt.mixture_law.analyze import analyze
from llama_cpt.mixture_law.findings import (
    as_config,
    as_options,
    conclusion,
    form_rows,
    format_objective,
    format_optimal_rate,
    next_rows,
    prediction_rows,
)
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.law_file import to_json
from llama_cpt.mixture_law.objective import Bound, Objective, Weights
from llama_cpt.mixture_law.report import FIGURES, make_report
from llama_cpt.mixture_law.runs_table import Results, read_results
from llama_cpt.mixture_law.table import GROUPS
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import NEGATIVE_RESULT, UsageError, UserError, one_line_errors
from llama_cpt.runtime.output_folder import check_local, check_writable
from llama_cpt.runtime.shown_command import command_line
from llama_cpt.runtime.tables import aligned_table

DESCRIPTION = """Recommends a mixture ratio (ALMR) and a learning rate from a table of runs, with
90 % confidence intervals, or prints why no recommendation is possible. docs/guide/law.md describes
the format of the table, the forms and their selection."""
EPILOG = """examples:
  python -m llama_cpt.fit_law sweeps/1b/results.csv --output laws/1b \\
      --config configs/llama3/cpt_1b.py
  python -m llama_cpt.fit_law sweeps/*/results.csv --output laws/70b --target-parameters 70e9
  python -m llama_cpt.fit_law others.csv --output laws/others --weights additional=1,original=2

Writes to DIR: law.json (load it with llama_cpt.mixture_law.law_file.load_law), report.md with
figures and, if there is a recommendation, recommended.py, a config for train (with --config), or
recommended.args, options for train (without --config).

Exit status: 0 with a recommendation, 3 without (law.json and report.md have the reasons),
78 if the table is invalid, 2 if an option is invalid, 130 on Ctrl-C.
"""


def main(arguments: list[str]) -> int:
    """Fit a law to the tables in ``arguments``, write its files and return the exit status."""
    options = _parser().parse_args(arguments)
    # Check the options first: reading the tables and fitting take longer.
    check_local("--output", options.output)
    check_writable(options.output)
    if options.config:
        load_config(options.config)
    if options.next < 0:
        raise UsageError(f"--next {options.next} must be 0 or more runs.")
    settings, target = [_setting(text) for text in options.predict], _target(options)
    results = read_results(options.results)
    objective = _objective(options, results)
    _check_target(results, options)
    law = analyze(results.runs, objective=objective, next_runs=options.next, **target)
    _print_summary(law, results)
    if settings:
        _print_predictions(law, settings, options)
    _write(law, results, options)
    return 0 if law.recommendation else NEGATIVE_RESULT


def _objective(options: argparse.Namespace, results: Results) -> Objective:
    if options.weights:
        weights = _named("--weights", options.weights, *GROUPS)
        if not any(weights.values()):
            raise UsageError(f"--weights {options.weights}: at least one weight must be above 0.")
        return Weights(**weights)
    if options.forgetting <= -1 or not math.isfinite(options.forgetting):
        raise UsageError(f"--forgetting {options.forgetting:g} must be above -1; 0.03 means 3 %.")
    if np.isnan(results.runs.base_original).any():
        raise UserError(
            f"{', '.join(results.files)}: {results.remarks[-1]} Set --weights "
            f"additional=1,original=1."
        )
    return Bound(options.forgetting)


def _named(option: str, text: str, *names: str) -> dict[str, float]:
    """Parse ``text``, the value ``a=1,b=2`` of ``option``, and return a dict from name to number.

    Raises UsageError unless ``text`` contains exactly ``names``, each with a finite number of at
    least 0.
    """
    form = f"{option} {text}: write {option} {','.join(f'{name}=NUMBER' for name in names)}"
    found = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        if name not in names or not equals:
            raise UsageError(f"{form}{did_you_mean(name, list(names)) or '.'}")
        found[name] = _number(f"{option} {name}", number)
    if set(found) != set(names):
        raise UsageError(f"{form}.")
    return found


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{name}={text!r} is not a number.") from None
    if not 0 <= value < math.inf:
        raise UsageError(f"{name}={text} must be a finite number of at least 0.")
    return value


def _setting(text: str) -> dict[str, float]:
    found = _named("--predict", text, "almr", "learning_rate")
    require_above_zero("--predict learning_rate", found["learning_rate"])
    if found["almr"] > 1:
        raise UsageError(f"--predict almr={found['almr']:g} must be in [0, 1].")
    return found


def _target(options: argparse.Namespace) -> dict[str, Any]:
    for name in ("target_parameters", "target_tokens"):
        if getattr(options, name) is not None:
            require_above_zero(f"--{name.replace('_', '-')}", getattr(options, name))
    base = options.target_base and _named("--target-base", options.target_base, *GROUPS)
    if base and options.target_parameters is None:
        raise UsageError("--target-base requires a size; add --target-parameters N.")
    for group, loss in (base or {}).items():
        require_above_zero(f"--target-base {group}", loss)
    return {
        "target_parameters": options.target_parameters,
        "target_tokens": options.target_tokens,
        "target_base": base,
    }


def _check_target(results: Results, options: argparse.Namespace) -> None:
    """Raise UserError if the table cannot be used for the target that ``options`` set.

    The columns of the target must not contain empty cells. With ``--target-base``, the table must
    not already contain base losses for the target's size.
    """
    for name in ("parameters", "tokens"):
        is_set = getattr(options, f"target_{name}") is not None
        if is_set and np.isnan(getattr(results.runs, name)).any():
            raise UserError(f"--target-{name}: column {name} of the table is empty; fill it in.")
    if options.target_base and options.target_parameters in results.runs.parameters:
        size = f"{options.target_parameters:g}"
        raise UserError(
            f"--target-base: the table has base losses for {size} parameters; remove the option."
        )


def _print_summary(law: Law, results: Results) -> None:
    print(f"{len(results.runs)} runs. Objective: {format_objective(law.objective)}.\n")
    print("\n".join(conclusion(law)))
    if law.optimal_rate:
        print(format_optimal_rate(law))
    if law.forms:
        print(f"\nErrors of the forms:\n{aligned_table(form_rows(law))}")
    if law.one_for_all:
        print(f"\nOne optimum for all pairs: {law.one_for_all}")
    if law.next_runs:
        where = (
            "at the size and budget with the most runs, each chosen as if the runs above it were "
            "done"
        )
        print(f"\nNext runs, {where}:\n{aligned_table(next_rows(law))}")
    for note in (*results.left_out, *results.remarks, *law.notes):
        print(f"note: {note}")


def _print_predictions(
    law: Law, settings: Sequence[Mapping[str, float]], options: argparse.Namespace
) -> None:
    if not law.surface:
        print("note: --predict: no form could be fitted, so there are no predictions (see above).")
        return
    target = {"parameters": options.target_parameters, "tokens": options.target_tokens}
    table = aligned_table(prediction_rows(settings, law, **target))
    print(f"\nPredicted losses with 90 % intervals:\n{table}")


def _write(law: Law, results: Results, options: argparse.Namespace) -> None:
    """Write each file of the law atomically, and remove obsolete files of an earlier law."""
    folder = epath.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    report = make_report(law, results)
    files = {name: content for name, content in report.pictures.items()}
    files["report.md"] = report.text.encode()
    if law.recommendation and options.config:
        files["recommended.py"] = as_config(law, options.config, options.output).encode()
    elif law.recommendation:
        files["recommended.args"] = as_options(law).encode()
    for name in {*FIGURES, "recommended.py", "recommended.args"} - set(files):
        (folder / name).unlink(missing_ok=True)
    # Write law.json last: its presence means that the other files are complete.
    files["law.json"] = to_json(law, results).encode()
    for name, content in files.items():
        write_atomic(folder / name, content)
    print(f"\n{folder / 'report.md'}, {folder / 'law.json'}")
    if "recommended.py" in files:
        print(command_line("train", str(folder / "recommended.py"), "--output", "RUN"))
    elif "recommended.args" in files:
        file = shlex.quote(str(folder / "recommended.args"))
        print(f"{command_line('train', 'CONFIG')} $(grep -v '#' {file})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.fit_law",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("results", nargs="+", metavar="RESULTS.csv", help="one table, in one file or several")
    add("--output", required=True, metavar="DIR", help="output folder")
    add("--config", help="base config of DIR/recommended.py")
    objective = parser.add_mutually_exclusive_group()
    text = (
        "minimize the additional loss, with an original loss of at most (1 + X) times that of the "
        "base model (default 0.03)"
    )
    objective.add_argument("--forgetting", type=float, default=0.03, metavar="X", help=text)
    text = "minimize a weighted sum of both losses instead: additional=1,original=1"
    objective.add_argument("--weights", metavar="WEIGHTS", help=text)
    text = "target size: number of parameters without embeddings"
    add("--target-parameters", type=float, metavar="N", help=text)
    add("--target-tokens", type=float, metavar="D", help="target budget: number of tokens")
    text = "losses of the target's base model, if known: additional=3.1,original=2.0"
    add("--target-base", metavar="LOSSES", help=text)
    text = "propose the K runs that would improve the recommendation most"
    add("--next", type=int, default=0, metavar="K", help=text)
    text = "predict the losses at almr=0.7,learning_rate=1e-4 and the target; may be repeated"
    add("--predict", action="append", default=[], metavar="SETTINGS", help=text)
    return parser


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
