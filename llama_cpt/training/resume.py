"""May this config go on from that checkpoint? Field by field, with the reason."""

from collections.abc import Sequence
import json
import re
from typing import Any

from etils import epath

from llama_cpt.checkpoint.checkpoint import CHECKPOINTS_FOLDER as CHECKPOINTS
from llama_cpt.checkpoint.step_marks import SAVING, marked
from llama_cpt.config.fields import FieldTraits, from_dict, to_dict, traits_by_name
from llama_cpt.config.schema import TrainConfig
from llama_cpt.runtime.errors import UsageError, UserError
from llama_cpt.runtime.metrics import FILE as METRICS
from llama_cpt.runtime.metrics import read_lines

_TRAITS = traits_by_name(TrainConfig)


def check_resume(
    saved_config: dict[str, Any],
    config: TrainConfig,
    allow: Sequence[str] = (),
    steps_done: int = 0,
) -> list[str]:
    """What a resumed run computes differently from the config it was saved with, in words.

    ``saved_config`` is the checkpoint's; ``allow`` names fields (``optimizer.beta2``) or sections
    (``optimizer``) that may change all the same. Raises UserError, naming field, both values and
    the flag, for any other change; also where ``num_steps`` lies before ``steps_done``.
    """
    if config.num_steps < steps_done:
        raise UserError(
            f"num_steps={config.num_steps}, but {steps_done} steps are done already: set more, "
            "or name another output folder."
        )
    # Through from_dict: a config saved before a field existed means the field's default.
    before = _flat(to_dict(from_dict(TrainConfig, saved_config, "the checkpoint's config")))
    now = _flat(to_dict(config))
    names = sorted(before.keys() | now.keys())
    for name in allow:
        if not any(_covers((name,), field) for field in names):
            raise UsageError(f"--allow-change {name}: the config has no such field or section.")
    _check_rows_before(before, config, steps_done)
    warnings, refused = [], {}
    for name in names:
        old, new = (
            "''" if (value := values.get(name, "nothing")) == "" else value
            for values in (before, now)
        )
        rule = _rule(name)
        if before.get(name) == now.get(name) or rule == "ignore":
            continue
        if rule == "never":
            raise UserError(
                f"{name} was {old}, is {new}: this run cannot go on so. Set it back, or name "
                "another output folder to start anew."
            )
        grows = name == "num_steps" and new > old
        if grows or rule == "warn" or _covers(allow, name):
            warnings.append(f"{name} was {old}, is {new}{_consequence(name, config)}")
        else:
            refused[name] = f"{name} was {old}, is {new}"
    if refused:
        raise UserError(
            f"the checkpoint was trained with another config: {'; '.join(refused.values())}. Set "
            f"back, name another output folder, or pass {' '.join(map(_flag, refused))}."
        )
    return warnings


def check_fingerprints(
    saved: dict[str, Any], now: dict[str, Any], allow: Sequence[str] = ()
) -> None:
    """Compare the fingerprints of tokenizer and corpora: strings in nested dicts.

    Raises UserError naming all that changed, unless ``allow`` holds ``data``.
    """
    before, after = _flat(saved), _flat(now)
    names = sorted(before.keys() | after.keys())
    changed = [name for name in names if before.get(name) != after.get(name)]
    refused = [name for name in changed if not _covers(allow, _section(name))]
    if refused:
        flags = " ".join(_flag(section) for section in sorted({*map(_section, refused)}))
        raise UserError(
            f"what the checkpoint was trained on has changed: {', '.join(refused)}. Bring it "
            f"back, name another output folder, or pass {flags}."
        )


def missing_save(output: str, found: int) -> str | None:
    """Return a warning if the metrics in ``output`` show a later save than step ``found``.

    ``found`` is the step to resume after, 0 if there is no checkpoint.
    """
    place = epath.Path(output)
    last = max((line["step"] for line in read_lines(place / METRICS)), default=0)
    try:
        saved = json.loads((place / "config.json").read_text())
        every, end = saved["checkpoint"]["every_steps"], saved["num_steps"]
        expected = last if last >= end else last - last % every
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if expected <= found or _is_named_otherwise(place / CHECKPOINTS, expected):
        return None
    return (
        f"{place / METRICS} reaches step {last}, but the checkpoint of step {expected} is not "
        f"there: it was removed, or its save failed. Training continues after step {found}; "
        "stop it if you can bring that checkpoint back."
    )


def _is_named_otherwise(checkpoints: epath.Path, step: int) -> bool:
    """Whether ``step`` was damaged or interrupted, which reading the checkpoints reports."""
    return (checkpoints / str(step)).exists() or step in marked(checkpoints, SAVING)


def _check_rows_before(before: dict[str, Any], config: TrainConfig, steps_done: int) -> None:
    """Refuse what would give the rows consumed so far another number, or another share."""
    batch_size = before["global_batch_size"]
    if steps_done and config.global_batch_size != batch_size:
        raise UserError(
            f"global_batch_size was {batch_size}, is {config.global_batch_size}: rows are counted "
            "by it, so that a run keeps its size. Start a new run from this one: --init-from "
            f"{config.output}, with another output."
        )
    was = before["data.almr"]
    was = was if isinstance(was, list) else [[0, was]]
    done = [[step, share] for step, share in was if step < steps_done]
    stages = [
        [step, float(share)] for step, share in config.data.almr_stages() if step < steps_done
    ]
    if stages != done:
        kept = ", ".join(f"({step}, {share:g})" for step, share in done)
        raise UserError(
            f"data.almr was {before['data.almr']}, is {config.data.almr}: {steps_done} steps are "
            f"done as they were. Keep them as stages and add yours: ({kept}, ({steps_done}, ...)), "
            "and pass --allow-change data.almr; or name another output folder."
        )


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """``{"data.original[0].name": "en", ...}``."""
    if isinstance(values, dict):
        inner = [(f"{name}.{key}" if name else key, value) for key, value in values.items()]
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        inner = [(f"{name}[{i}]", value) for i, value in enumerate(values)]
    else:
        return {name: values}
    return {path: leaf for key, value in inner for path, leaf in _flat(value, key).items()}


def _covers(names: Sequence[str], field: str) -> bool:
    return any(field == name or field.startswith((f"{name}.", f"{name}[")) for name in names)


def _flag(name: str) -> str:
    return f"--allow-change {name}"


def _section(fingerprint: str) -> str:
    """Of a fingerprint's name, ``heldout.zh``: the section of the config that may change it."""
    return "data.heldout" if fingerprint.startswith("heldout.") else "data"


def _rule(name: str) -> str:
    """Return how the field with this dotted name, such as ``data.original[0].name``, may change."""
    return _TRAITS.get(re.sub(r"\[\d+\]", "", name), FieldTraits()).on_resume


def _consequence(name: str, config: TrainConfig) -> str:
    schedule = config.optimizer.schedule
    if name == "num_steps" and schedule != "constant":
        return f"; from here on the {schedule} learning rate follows the new length"
    return ""
