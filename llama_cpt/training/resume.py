"""May this config go on from that checkpoint? Field by field, with the reason."""

from collections.abc import Sequence
from typing import Any

from llama_cpt.config import TrainConfig, from_dict, to_dict
from llama_cpt.errors import UserError

# How the run is computed, watched and kept; none of it changes what is trained.
MAY_DIFFER = (
    "mesh",
    "log_every_steps",
    "evaluation",
    "checkpoint",
    "compute.attention",
    "compute.remat",
    "compute.loss_chunk_tokens",
    "data.max_epochs",
)

# Where things lie. That the things are the same, their fingerprints tell.
PLACES = ("output", "init_from", "data.tokenizer", "data.prepared")


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
    for name in allow:
        if not _is_field(name, to_dict(config)):
            raise UserError(f"--allow-change {name}: the config has no such field or section.")
    if config.num_steps < steps_done:
        raise UserError(
            f"num_steps={config.num_steps}, but {steps_done} steps are done already: set more, "
            "or name another output folder."
        )
    # Through from_dict: a config saved before a field existed means the field's default.
    before = _flat(to_dict(from_dict(TrainConfig, saved_config, "the checkpoint's config")))
    now = _flat(to_dict(config))
    warnings, refused = [], {}
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old == new or _covers(PLACES, name) or _is_source(name):
            continue
        grows = name == "num_steps" and new > old
        if grows or _covers((*MAY_DIFFER, *allow), name):
            warnings.append(f"{name} was {old}, is {new}{_consequence(name, config)}")
        else:
            refused[name] = f"{name} was {old}, is {new}"
    if refused:
        raise UserError(
            f"the checkpoint was trained with another config: {'; '.join(refused.values())}. Set "
            f"back, name another output folder, or pass --allow-change {' '.join(refused)}."
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
    if changed and "data" not in allow:
        raise UserError(
            f"what the checkpoint was trained on has changed: {', '.join(changed)}. Bring it "
            "back, name another output folder, or pass --allow-change data."
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


def _is_field(name: str, values: dict[str, Any]) -> bool:
    return any(_covers((name,), field) for field in _flat(values))


def _is_source(name: str) -> bool:
    return name.startswith("data.") and name.endswith("].source")


def _consequence(name: str, config: TrainConfig) -> str:
    schedule = config.optimizer.schedule
    if name == "num_steps" and schedule != "constant":
        return f"; from here on the {schedule} learning rate follows the new length"
    return ""
