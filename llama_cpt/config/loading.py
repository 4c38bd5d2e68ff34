"""Reading and writing of config files in Python or JSON, with overrides by field name."""

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
from llama_cpt.runtime.errors import UsageError, UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.output_folder import check_local
from llama_cpt.runtime.storage import check_reachable

Config = TypeVar("Config", TrainConfig, PipelineConfig, SweepConfig)


def load_config(
    path: str, overrides: Sequence[str] = (), kind: type[Config] = TrainConfig
) -> Config:
    """Read a config file (``.py`` or a run's ``config.json``) and apply ``--section.field value``.

    ``FILE.py:NAME`` reads the variable ``NAME`` of a Python file; without a name it is ``config``.
    Raises UserError for a missing file and for an unknown or invalid field. ``--help`` among the
    overrides prints every field and exits.
    """
    path, name = _split_name(path)
    check_reachable(path)
    if not epath.Path(path).is_file():
        raise UserError(f"{path}: no such config file; configs/ has examples.")
    if path.endswith(".py"):
        config = _from_python(path, name, kind)
    else:
        config = _from_json(path, kind)
    # Expanded here, so that every part of a run means the same folder.
    return map_paths(_apply_overrides(config, kind, list(overrides)), os.path.expanduser)


def save_config(config: Config, path: Any) -> None:
    """Write the resolved config to ``path`` as JSON, which ``load_config`` reads."""
    write_atomic(path, json.dumps(to_dict(config), indent=1, ensure_ascii=False) + "\n")


def _split_name(path: str) -> tuple[str, str]:
    """Split ``FILE.py:NAME``; a file that has a colon in its own name is taken as it is."""
    file, colon, name = path.rpartition(":")
    named = colon and file.endswith(".py") and name.isidentifier() and not Path(path).exists()
    return (file, name) if named else (path, "config")


def _from_python(path: str, name: str, kind: type[Config]) -> Config:
    check_local("config", path)
    # Configs derive from one another by `from configs.cpt_8b import config`, whatever the current
    # folder is.
    parent = str(Path(path).resolve().parent.parent)
    sys.path.insert(0, parent)
    try:
        config = runpy.run_path(path).get(name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from None
    except TypeError as error:
        raise UserError(f"{path}: {_argument_error(error)}") from None
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: {_import_error(error)}") from None
    except Exception as error:  # The file is a program of the user and can raise anything.
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(parent)
    if not isinstance(config, kind):
        raise UserError(f"{path}: does not define `{name} = {kind.__name__}(...)`.")
    return config


def _argument_error(error: TypeError) -> str:
    """Describe ``error``; if a field of a config class was renamed, name the new one."""
    # Python reports an unknown field as a TypeError of the dataclass's constructor.
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kind = match and {section.__name__: section for section in _sections()}.get(match[1])
    if kind:
        if renamed := former_names(kind).get(match[2]):
            return f"{match[1]}: field {match[2]!r} is now named {renamed!r}."
        known = [spec.name for spec in dataclasses.fields(kind)]
        return f"{match[1]}: unknown field {match[2]!r}{did_you_mean(match[2], known)}"
    return f"TypeError: {error}"


def _import_error(error: ModuleNotFoundError) -> str:
    if error.name == "llama_cpt.config_file":
        return (
            "fit_law 0.1 wrote this file; run fit_law again, or import load_config from "
            "llama_cpt.config.loading in place of load."
        )
    if (error.name or "").startswith("llama_cpt."):
        return (
            f"{error.name} does not exist; config files import their classes from llama_cpt.config."
        )
    return f"ModuleNotFoundError: {error}"


def _sections() -> list[type[ConfigSection]]:
    """List every class that a config file can use."""
    found = [ConfigSection]
    for kind in found:  # The list grows while it is read, so that all descendants are visited.
        found.extend(kind.__subclasses__())
    return found[1:]


def _from_json(path: str, kind: type[Config]) -> Config:
    try:
        return from_dict(kind, json.loads(epath.Path(path).read_text("utf-8")), path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not JSON ({error}).") from None


def _apply_overrides(config: Config, kind: type[Config], overrides: list[str]) -> Config:
    if not overrides:
        return config
    # Without this, tyro makes a subcommand of every union, such as the two objectives.
    annotated = Annotated[kind, tyro.conf.AvoidSubcommands]
    output = io.StringIO()
    if {"-h", "--help"} & set(overrides):
        return tyro.cli(annotated, default=config, args=overrides)
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return tyro.cli(annotated, default=config, args=overrides)
    except SystemExit:
        raise UsageError(_override_error(output.getvalue(), config)) from None


def _override_error(output: str, config: Config) -> str:
    """Return the error in one line; tyro prints a title, a message and help, with rules between."""
    parts = re.split(r"^\s*-{3,}\s*$", output, flags=re.MULTILINE)
    sentence = " ".join(parts[min(1, len(parts) - 1)].split("\n\n")[0].split()).rstrip(".")
    bad = re.search(r"--(\S+): no type matching .* could be instantiated from \[(.*?)\]", sentence)
    if bad and (kinds := re.search(rf"^ *--{re.escape(bad[1])} (.+?) *$", output, re.MULTILINE)):
        return f"{bad[1].replace('-', '_')}={bad[2]} must be {kinds[1]}, in numbers."
    unknown = re.search(r"Unrecognized options: --(?P<name>[\w.-]+)", sentence)
    if not unknown:
        # The messages of this package name the field already.
        return f"{re.sub(r'^Error parsing [^:]*: (?=[a-z_.]+=)', '', sentence)}."
    name = unknown["name"].replace("-", "_")
    if section := _missing_section(config, name.split(".")):
        return (
            f"config: {name}: this config has no such section, and options cannot add one; write "
            f"{section} in the file."
        )
    if renamed := renamed_path(config, name.split(".")):
        return f"--{unknown['name']} is now named --{renamed.replace('_', '-')}."
    return f"config: unknown field {name!r}{did_you_mean(name, _dotted_names(to_dict(config)))}"


def _missing_section(section: Any, path: list[str]) -> str:
    """Return the section along ``path`` that is None, as a config file would write it, or ''."""
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
    """Return the names of all fields as overrides spell them."""
    names = []
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(index): entry for index, entry in enumerate(value)}
        is_section = isinstance(value, dict)
        names += _dotted_names(value, f"{above}{name}.") if is_section else [above + name]
    return names
