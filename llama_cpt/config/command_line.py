"""Command lines of the form ``CONFIG [options] [--section.field value ...]``."""

import argparse
from collections.abc import Sequence

_PYTHON_OR_JSON = "a config file in Python, or the config.json of a run"


def config_parser(
    command: str, description: str, epilog: str, *, config_help: str = _PYTHON_OR_JSON
) -> argparse.ArgumentParser:
    """Return a parser with the argument CONFIG; the caller adds the options of ``command``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m llama_cpt.{command}",
        description=description,
        epilog=epilog,
        # parse_arguments and load_config handle --help, to also print the fields of the config.
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("config", nargs="?", help=config_help)
    return parser


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Return the parsed options, and the remaining arguments as overrides for ``load_config``.

    Without CONFIG, this function prints the help and exits with status 0. With CONFIG and
    ``--help``, it prints the help; ``load_config`` then prints all fields of the config and exits.
    """
    options, overrides = parser.parse_known_args(arguments)
    if options.config is None or {"-h", "--help"} & set(overrides):
        parser.print_help()
    if options.config is None:
        raise SystemExit(0)
    return options, overrides
