"""Checks of a config against the checkpoint to resume from, field by field."""

from collections.abc import Sequence
import json
import re
from typing import Any

from etils import epath

from llama_cpt.checkpoint.checkpoint import CHECKPOINTS_FOLDER as CHECKPOINTS
from llama_cpt.checkpoint.step_marks import SAVING, marked
from llama_cpt.config.fields import (
    FieldTraits,
    from_dict,
    renamed_path,
    to_dict,
    traits_by_name,
)
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
    """Return a warning for each allowed change between ``saved_config`` and ``config``.

    ``saved_config`` is the checkpoint's; ``allow`` names fields (``optimizer.beta2``) or sections
    (``optimizer``) that may change as well. Raises UserError, naming the field, both values and the
    flag, for any other change, and if ``num_steps`` is below ``steps_done``.
    """
    if config.num_steps < steps_done:
        raise UserError(
            f"num_steps={config.num_steps}, but {steps_done} steps are done already; increase "
            "num_steps or set another output folder."
        )
    # from_dict adds defaults: a config saved before a field existed means the field's default.
    before = _flat(to_dict(from_dict(TrainConfig, saved_config, "the checkpoint's config")))
    now = _flat(to_dict(config))
    names = sorted(before.keys() | now.keys())
    for name in allow:
        if renamed := renamed_path(config, name.split(".")):
            raise UsageError(f"--allow-change {name} is now named {renamed}.")
        if not any(_covers((name,), field) for field in names):
            raise UsageError(
                f"--allow-change {name}: the config has no such field or section; check its name."
            )
    _check_rows_before(before, config, steps_done)
    warnings, refused = [], {}
    for name in names:
        old, new = (
            "''" if (value := values.get(name, "absent")) == "" else value
            for values in (before, now)
        )
        rule = _rule(name)
        if before.get(name) == now.get(name) or rule == "ignore":
            continue
        if rule == "never":
            raise UserError(
                f"{name} was {old}, is {new}: the run cannot be resumed with this value. Set it "
                "back, or set another output folder to start a new run."
            )
        grows = name == "num_steps" and new > old
        if grows or rule == "warn" or _covers(allow, name):
            warnings.append(f"{name} was {old}, is {new}{_consequence(name, config)}")
        else:
            refused[name] = f"{name} was {old}, is {new}"
    if refused:
        raise UserError(
            f"the checkpoint was trained with another config: {'; '.join(refused.values())}. Set "
            f"back, set another output folder, or pass {' '.join(map(_flag, refused))}."
        )
    return warnings


def check_fingerprints(
    saved: dict[str, Any], now: dict[str, Any], allow: Sequence[str] = ()
) -> None:
    """Compare the fingerprints of tokenizer and corpora, strings in nested dicts.

    Raises UserError naming all that changed, unless ``allow`` covers their sections.
    """
    before, after = _flat(saved), _flat(now)
    names = sorted(before.keys() | after.keys())
    changed = [name for name in names if before.get(name) != after.get(name)]
    refused = [name for name in changed if not _covers(allow, _section(name))]
    if refused:
        flags = " ".join(_flag(section) for section in sorted({*map(_section, refused)}))
        raise UserError(
            f"the data of the checkpoint has changed: {', '.join(refused)}. Restore it, set "
            f"another output folder, or pass {flags}."
        )


def missing_save(output: str, found: int) -> str | None:
    """Return a warning if the metrics in ``output`` show a later save than step ``found``.

    ``found`` is the step to resume after, 0 if there is no checkpoint.
    """
    folder = epath.Path(output)
    last = max((line["step"] for line in read_lines(folder / METRICS)), default=0)
    try:
        saved = json.loads((folder / "config.json").read_text())
        every, end = saved["checkpoint"]["every_steps"], saved["num_steps"]
        expected = last if last >= end else last - last % every
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if expected <= found or _is_reported_elsewhere(folder / CHECKPOINTS, expected):
        return None
    return (
        f"{folder / METRICS} reaches step {last}, but the checkpoint of step {expected} does "
        f"not exist: it was removed, or its save failed. Training continues after step {found}; "
        "stop it if you can restore that checkpoint."
    )


def _is_reported_elsewhere(checkpoints: epath.Path, step: int) -> bool:
    """Return whether reading the checkpoints reports ``step`` as damaged or interrupted."""
    return (checkpoints / str(step)).exists() or step in marked(checkpoints, SAVING)


def _check_rows_before(before: dict[str, Any], config: TrainConfig, steps_done: int) -> None:
    """Raise UserError if ``config`` changes the number or the shares of the rows consumed so far.

    The mixture computes each row from its number alone, and a resumed run starts at row
    ``steps_done * global_batch_size``. Another batch size or another share of past steps would
    repeat or skip rows.
    """
    batch_size = before["global_batch_size"]
    if steps_done and config.global_batch_size != batch_size:
        raise UserError(
            f"global_batch_size was {batch_size}, is {config.global_batch_size}: the rows consumed "
            "are counted by it, so it cannot change within a run. Start a new run from this one: "
            f"--init-from {config.output} with another output."
        )
    saved = before["data.almr"]
    saved = saved if isinstance(saved, list) else [[0, saved]]
    done = [[step, share] for step, share in saved if step < steps_done]
    stages = [
        [step, float(share)] for step, share in config.data.almr_stages() if step < steps_done
    ]
    if stages != done:
        kept = ", ".join(f"({step}, {share:g})" for step, share in done)
        raise UserError(
            f"data.almr was {before['data.almr']}, is {config.data.almr}: {steps_done} steps are "
            "done already with their own value. Keep their stages and add yours: "
            f"({kept}, ({steps_done}, ...)), and pass --allow-change data.almr; or set another "
            "output folder."
        )


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested dicts and lists to dotted names: ``{"data.original[0].name": "en", ...}``."""
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
    """Return the config section that a fingerprint such as ``heldout.zh`` belongs to."""
    return "data.heldout" if fingerprint.startswith("heldout.") else "data"


def _rule(name: str) -> str:
    """Return how the field with this dotted name, such as ``data.original[0].name``, may change."""
    return _TRAITS.get(re.sub(r"\[\d+\]", "", name), FieldTraits()).on_resume


def _consequence(name: str, config: TrainConfig) -> str:
    schedule = config.optimizer.schedule
    if name == "num_steps" and schedule != "constant":
        return f"; from here on the {schedule} learning rate follows the new length"
    return ""
