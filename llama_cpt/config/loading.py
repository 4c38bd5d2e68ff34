"""Config files: loading from Python or JSON, command lines and overrides, and saving as JSON."""

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path
import re
import runpy
import sys
from typing import Annotated, Any, TypeVar, get_args

from etils import epath
import tyro

from llama_cpt.config.added_corpora import with_added_corpora
from llama_cpt.config.fields import (
    ConfigSection,
    did_you_mean,
    former_names,
    from_dict,
    map_paths,
    renamed_path,
    to_dict,
)
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UsageError, UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.output_folder import check_local
from llama_cpt.runtime.storage import check_reachable

Config = TypeVar("Config", TrainConfig, PipelineConfig, SweepConfig)
_PYTHON_OR_JSON = "a config file in Python, or the config.json of a run"


def load_config(
    path: str, overrides: Sequence[str] = (), kind: type[Config] = TrainConfig
) -> Config:
    """Return the config in ``path`` after applying ``overrides`` such as ``--section.field value``.

    ``path`` is a Python file or the ``config.json`` of a run. ``FILE.py:NAME`` reads the variable
    ``NAME``; the default is ``config``. ``kind`` is the expected class. ``~`` in paths is expanded.
    If the overrides include ``--help``, prints all fields and exits. Raises UserError if the file
    is missing, a field is unknown or a value is invalid.
    """
    path, name = _split_name(path)
    check_reachable(path)
    if not epath.Path(path).is_file():
        raise UserError(f"{path}: no such config file; {_hint(path, name)}.")
    if path.endswith(".py"):
        config = _from_python(path, name, kind)
    else:
        config = _from_json(path, kind)
    # Expand ~ once here, so that all parts of a run use the same folder.
    return map_paths(_apply_overrides(config, kind, list(overrides)), os.path.expanduser)


def save_config(config: Config, path: Any) -> None:
    """Write ``config`` to ``path`` as JSON, which ``load_config`` can read."""
    write_atomic(path, json.dumps(to_dict(config), indent=1, ensure_ascii=False) + "\n")


# Version 0.1 had all configs in one folder; the keys are the stems of its files. The values are
# paths in configs/, as FILE or FILE:VARIABLE and without the suffix .py.
_MOVED = {
    **{
        name: f"llama3/{name}"
        for name in (
            *("models", "cpt_1b", "cpt_8b", "cpt_8b_long", "cpt_70b"),
            *("sft_8b", "sft_70b", "dpo_8b", "dpo_70b", "sweep_8b"),
        )
    },
    **{
        f"sweep_{name}_8b": f"llama3/sweep_8b:{name}"
        for name in ("order", "rates", "ratios", "spanish")
    },
    **{
        f"{folder}_{name}": f"{folder}/{name}"
        for folder in ("demo", "real_text")
        for name in ("base", "cpt", "sft", "dpo", "pipeline")
    },
    "real_text": "real_text/base",
    "study": "study/base_models",
    **{f"study_{name}": f"study/base_models:{name}" for name in ("small", "middle", "large")},
    **{
        f"study_{name}_sweep": f"study/sweeps:{name}"
        for name in ("small", "noise", "middle", "large")
    },
    "study_large_noise_sweep": "study/sweeps:large_noise",
    "world_study": "demo/study",
    "world_study_base": "demo/study:base",
    "world_study_cpt": "demo/study:cpt_ar",
    "world_study_ar": "demo/study:sweep_ar",
    "world_study_zh": "demo/study:sweep_zh",
}


def _moved_config(stem: str) -> tuple[str, str] | None:
    """Return the present location of the file ``configs/STEM.py`` of version 0.1.

    The location is a path without the suffix .py, and the variable that replaces ``config`` or an
    empty string. Returns None if version 0.1 had no such file.
    """
    if stem not in _MOVED:
        return None
    file, _, variable = _MOVED[stem].partition(":")
    return f"configs/{file}", variable


def _hint(path: str, name: str) -> str:
    """Return a hint for a missing config file: its new path, or the folder of examples.

    ``name`` is the variable that was requested. The hint contains ``name`` if the new file has
    several variables.
    """
    moved = _moved_config(Path(path).stem)
    if not moved:
        return "configs/ has examples"
    variable = moved[1] or name
    return f"see {moved[0]}.py" + (f":{variable}" if variable != "config" else "")


def _split_name(path: str) -> tuple[str, str]:
    """Return the file and the variable in ``FILE.py:NAME``; the default variable is ``config``.

    A path that exists is never split, because a file name can contain a colon.
    """
    file, colon, name = path.rpartition(":")
    named = colon and file.endswith(".py") and name.isidentifier() and not Path(path).exists()
    return (file, name) if named else (path, "config")


def _from_python(path: str, name: str, kind: type[Config]) -> Config:
    check_local("config", path)
    parent = str(_import_root(Path(path).resolve()))
    sys.path.insert(0, parent)
    try:
        config = runpy.run_path(path).get(name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from None
    except TypeError as error:
        raise UserError(f"{path}: {_argument_error(error)}") from None
    except ImportError as error:
        raise UserError(f"{path}: {_import_error(error)}") from None
    except Exception as error:  # The file is a user's program and can raise any exception.
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(parent)
    if not isinstance(config, kind):
        raise UserError(f"{path}: does not define `{name} = {kind.__name__}(...)`.")
    return config


def _import_root(file: Path) -> Path:
    """Return the folder to add to ``sys.path``, so that ``file`` can import other config files.

    For a file in or below a folder ``configs``, the result is the parent of ``configs``, so that
    ``from configs.llama3.cpt_8b import config`` works. For any other file, the result is the parent
    of the file's folder. The result does not depend on the working directory.
    """
    configs = [folder for folder in file.parents if folder.name == "configs"]
    return configs[0].parent if configs else file.parent.parent


def _argument_error(error: TypeError) -> str:
    """Return a message for a TypeError in a config file, with a hint for an unknown field."""
    # The constructor of a dataclass raises TypeError for an unknown field.
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kind = {section.__name__: section for section in _sections()}.get(match[1]) if match else None
    if match and kind and dataclasses.is_dataclass(kind):
        if renamed := former_names(kind).get(match[2]):
            return f"{match[1]}: field {match[2]!r} is now named {renamed!r}."
        known = [spec.name for spec in dataclasses.fields(kind)]
        return f"{match[1]}: unknown field {match[2]!r}{did_you_mean(match[2], known)}"
    return f"TypeError: {error}"


def _import_error(error: ImportError) -> str:
    if error.name == "llama_cpt.config_file":
        return (
            "fit_law 0.1 wrote this file; run fit_law again, or import load_config from "
            "llama_cpt.config.loading in place of load."
        )
    parent, _, stem = (error.name or "").rpartition(".")
    if parent == "configs" and (moved := _moved_config(stem)):
        module = moved[0].replace("/", ".")
        now = f"the variable {moved[1]} of {module}" if moved[1] else f"named {module}"
        return f"{error.name} is now {now}."
    if (error.name or "").startswith("llama_cpt."):
        return (
            f"{error.name} does not exist; config files import their classes from llama_cpt.config."
        )
    return f"{type(error).__name__}: {error}"


def _sections() -> list[type[ConfigSection]]:
    """Return all direct and indirect subclasses of ConfigSection."""
    found = [ConfigSection]
    for kind in found:  # The list grows during the loop, so that all descendants are visited.
        found.extend(kind.__subclasses__())
    return found[1:]


def _from_json(path: str, kind: type[Config]) -> Config:
    return from_dict(kind, read_json_object(path, "fix it, or name a file in Python"), path)


def _apply_overrides(config: Config, kind: type[Config], overrides: list[str]) -> Config:
    if not overrides:
        return config
    config = with_added_corpora(config, overrides)
    # Without AvoidSubcommands, tyro would create subcommands for unions such as ``objective``.
    annotated: Any = Annotated[kind, tyro.conf.AvoidSubcommands]
    output = io.StringIO()
    if {"-h", "--help"} & set(overrides):
        return tyro.cli(annotated, default=config, args=overrides)
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return tyro.cli(annotated, default=config, args=overrides)
    except SystemExit:
        raise UsageError(_override_error(output.getvalue(), config)) from None


def _override_error(output: str, config: Config) -> str:
    """Return tyro's error message on one line, with the names of config fields.

    ``output`` is the text that tyro printed: a title, a message and help, separated by lines of
    dashes.
    """
    parts = re.split(r"^\s*-{3,}\s*$", output, flags=re.MULTILINE)
    sentence = " ".join(parts[min(1, len(parts) - 1)].split("\n\n")[0].split()).rstrip(".")
    bad = re.search(r"--(\S+): no type matching .* could be instantiated from \[(.*?)\]", sentence)
    if bad and (kinds := re.search(rf"^ *--{re.escape(bad[1])} (.+?) *$", output, re.MULTILINE)):
        return f"{bad[1].replace('-', '_')}={bad[2]} must be {kinds[1]}, in numbers."
    unknown = re.search(r"Unrecognized options: --(?P<name>[\w.-]+)", sentence)
    if not unknown:
        # Messages from the validation of this package already name the field.
        return f"{re.sub(r'^Error parsing [^:]*: (?=[a-z_.]+=)', '', sentence)}."
    name = unknown["name"].replace("-", "_")
    if section := _missing_section(config, name.split(".")):
        return (
            f"config: {name}: this config has no such section, and options cannot add it; write "
            f"{section} in the file."
        )
    if renamed := renamed_path(config, name.split(".")):
        return f"--{unknown['name']} is now named --{renamed.replace('_', '-')}."
    return f"config: unknown field {name!r}{did_you_mean(name, _dotted_names(to_dict(config)))}"


def _missing_section(section: Any, path: list[str]) -> str:
    """Return Python code for the section of ``path`` that is None, as in ``lora=LoraConfig(...)``.

    Returns '' if no section of ``path`` is None.
    """
    for name in path:
        kinds = {one.name: one.type for one in dataclasses.fields(section)}
        if name not in kinds:
            return ""
        section = getattr(section, name)
        if section is None:
            return f"{name}={get_args(kinds[name])[0].__name__}(...)"
        if not dataclasses.is_dataclass(section):
            return ""
    return ""


def _dotted_names(values: dict[str, Any], above: str = "") -> list[str]:
    """Return the dotted names of all fields in ``values``, as in the override ``stages.0.seed``."""
    names: list[str] = []
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(index): entry for index, entry in enumerate(value)}
        if isinstance(value, dict):
            names += _dotted_names(value, f"{above}{name}.")
        else:
            names.append(above + name)
    return names


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
