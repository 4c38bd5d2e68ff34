"""Corpora that command-line options add to a config, such as ``--data.additional.1.name ja``."""

from collections.abc import Sequence
from dataclasses import replace
import re
from typing import Any

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.runtime.errors import UsageError

_OPTION = re.compile(r"--([\w.-]+)\.(\d+)\.([\w-]+)(?:=(.*))?", re.DOTALL)


def with_added_corpora(config: Any, overrides: Sequence[str]) -> Any:
    """Return ``config`` with a corpus for each new index in ``overrides``.

    An added corpus has the name and the source in ``overrides``, and defaults for all other fields.
    Raises UsageError if the name or the source is missing, or if an index is not the next one.
    """
    for group, corpora in _new_corpora(config, overrides).items():
        size = len(_section(config, group.split(".")))
        for index, values in sorted(corpora.items()):
            option = f"--{group}.{index}"
            if index != size:
                raise UsageError(
                    f"{option}: the config has {size} corpora in {group}, so the next one is "
                    f"--{group}.{size}; add corpora in this order."
                )
            for name in ("name", "source"):
                if name not in values:
                    raise UsageError(
                        f"{option} adds a corpus to {group}, which needs a name and a source; set "
                        f"{option}.{name} too, or correct the index."
                    )
            corpus = CorpusConfig(values["name"], values["source"])
            config = _append(config, group.split("."), corpus)
            size += 1
    return config


def _new_corpora(config: Any, overrides: Sequence[str]) -> dict[str, dict[int, dict[str, str]]]:
    """Return the options of corpora that are not in ``config``, by group, index and field."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    for position, argument in enumerate(overrides):
        match = _OPTION.fullmatch(argument)
        if not match:
            continue
        group, index, name, value = match.groups()
        path = group.split(".")
        corpora = _section(config, path)
        if not isinstance(_section(config, path[:-1]), DataConfig) or not isinstance(
            corpora, tuple
        ):
            continue
        if int(index) >= len(corpora):
            if value is None:
                value = "".join(overrides[position + 1 : position + 2])
            found.setdefault(group, {}).setdefault(int(index), {})[name] = value
    return found


def _section(config: Any, path: Sequence[str]) -> Any:
    """Return the value at ``path``, such as ``("stages", "0", "data")``; None if it is missing."""
    for name in path:
        if isinstance(config, tuple) and name.isdecimal():
            config = config[int(name)] if int(name) < len(config) else None
        else:
            config = getattr(config, name, None)
    return config


def _append(section: Any, path: Sequence[str], corpus: CorpusConfig) -> Any:
    """Return ``section`` with ``corpus`` appended to the tuple at ``path``."""
    if not path:
        return (*section, corpus)
    name, *rest = path
    if isinstance(section, tuple):
        index = int(name)
        return (*section[:index], _append(section[index], rest, corpus), *section[index + 1 :])
    return replace(section, **{name: _append(getattr(section, name), rest, corpus)})
