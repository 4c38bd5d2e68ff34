"""Checks that a config, its data and its output folder agree with the checkpoint to resume from.

``FieldTraits.on_resume`` declares per field whether a change is ignored, logged, rejected unless
``--allow-change`` names the field, or always rejected. Even with ``--allow-change``, a resumed run
cannot change the batch size, or the ALMR, the corpora, their order and their weights in past steps,
or decrease ``num_steps`` below the number of steps done.
"""

from collections.abc import Sequence
import re
import shlex
from typing import Any

from etils import epath

from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.checkpoint.step_marks import SAVING, marked
from llama_cpt.config.corpus import CorpusConfig
from llama_cpt.config.fields import (
    FieldTraits,
    flat_fields,
    from_dict,
    renamed_path,
    to_dict,
    traits_by_name,
)
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.stages import StagedValue
from llama_cpt.runtime.errors import UsageError, UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.metrics import FILE as METRICS
from llama_cpt.runtime.metrics import read_lines

_TRAITS = traits_by_name(TrainConfig)


def check_resume(
    saved_config: dict[str, Any],
    config: TrainConfig,
    allow: Sequence[str] = (),
    steps_done: int = 0,
    batches_used: int = 0,
) -> list[str]:
    """Return a warning for each permitted change from ``saved_config`` to ``config``.

    ``saved_config`` is the config in the checkpoint, and ``steps_done`` is the checkpoint's step.
    ``batches_used`` is the number of batches of rows used so far, if rollbacks have passed over
    rows. The stages of the mixture count these batches.
    ``allow`` contains the fields (``optimizer.beta2``) or sections (``optimizer``) that the user
    named with ``--allow-change``. Raises UserError if a change is not permitted; the message
    contains the field and the values before and after. Raises UsageError if ``allow`` contains an
    unknown name.
    """
    if config.num_steps < steps_done:
        raise UserError(
            f"num_steps={config.num_steps}, but {steps_done} steps are done already; increase "
            "num_steps or set a different output folder."
        )
    # from_dict adds defaults, so a field that is missing in an older config has its default.
    saved = from_dict(TrainConfig, saved_config, "the checkpoint's config")
    before, now = flat_fields(to_dict(saved)), flat_fields(to_dict(config))
    names = sorted(before.keys() | now.keys())
    for name in allow:
        if renamed := renamed_path(config, name.split(".")):
            raise UsageError(f"--allow-change {name} is now named {renamed}.")
        if not any(_covers((name,), field) for field in names):
            raise UsageError(
                f"--allow-change {name}: the config has no such field or section; check its name."
            )
    _check_rows_before(saved, config, max(steps_done, batches_used))
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
                f"{name} was {old}, is {new}, and cannot change when a run resumes. Restore the "
                "old value, or set a different output folder to start a new run."
            )
        grows = name == "num_steps" and new > old
        if grows or rule == "warn" or _covers(allow, name):
            warnings.append(f"{name} was {old}, is {new}{_consequence(name, config)}")
        else:
            refused[name] = f"{name} was {old}, is {new}"
    if refused:
        raise UserError(
            f"the checkpoint was trained with another config: {'; '.join(refused.values())}. "
            "Restore the old values, set a different output folder, or pass "
            f"{' '.join(map(_flag, refused))}."
        )
    return warnings


def check_fingerprints(
    saved: dict[str, Any], now: dict[str, Any], allow: Sequence[str] = ()
) -> None:
    """Raise UserError if a fingerprint of the tokenizer or of a corpus has changed.

    ``saved`` contains the fingerprints from the checkpoint, and ``now`` contains the fingerprints
    of this run. Both are nested dicts of strings. Changes in the config sections that ``allow``
    contains (``data`` or ``data.heldout``) are permitted.
    """
    before, after = flat_fields(saved), flat_fields(now)
    names = sorted(before.keys() | after.keys())
    changed = [name for name in names if before.get(name) != after.get(name)]
    refused = [name for name in changed if not _covers(allow, _section(name))]
    if refused:
        flags = " ".join(_flag(section) for section in sorted({*map(_section, refused)}))
        raise UserError(
            f"the data of the checkpoint has changed: {', '.join(refused)}. Restore the data, set "
            f"a different output folder, or pass {flags}."
        )


def missing_save(output: str, found: int) -> str | None:
    """Return a warning if the run in ``output`` saved a checkpoint that no longer exists.

    ``found`` is the step of the checkpoint to resume from, or 0 if there is no checkpoint. The step
    of the expected checkpoint is derived from the last step in ``metrics.jsonl`` and the save
    interval in ``config.json``. Returns None if no checkpoint after ``found`` is expected, or if
    ``CheckpointManager`` already reports the expected checkpoint as damaged or interrupted.
    """
    folder = epath.Path(output)
    last = max((line["step"] for line in read_lines(folder / METRICS)), default=0)
    try:
        saved = read_json_object(str(folder / "config.json"), "restore it")
        every, end = saved["checkpoint"]["every_steps"], saved["num_steps"]
        expected = last if last >= end else last - last % every
    except (ValueError, KeyError, TypeError, ZeroDivisionError):  # UserError is a ValueError.
        return None
    if expected <= found or _is_reported_elsewhere(folder / CHECKPOINTS_FOLDER, expected):
        return None
    return (
        f"{folder / METRICS} reaches step {last}, but the checkpoint of step {expected} does "
        f"not exist. The checkpoint was removed, or its save failed. Training continues after step "
        f"{found}; stop the run if you can restore the checkpoint of step {expected}."
    )


def _is_reported_elsewhere(checkpoints: epath.Path, step: int) -> bool:
    """Return whether ``CheckpointManager`` reports a damaged or interrupted save of ``step``."""
    return (checkpoints / str(step)).exists() or step in marked(checkpoints, SAVING)


def _check_rows_before(saved: TrainConfig, config: TrainConfig, steps_done: int) -> None:
    """Raise UserError if ``config`` selects other rows for past steps than ``saved`` did.

    The mixture selects each row by the row's number in the run, and a resumed run starts at row
    ``steps_done * global_batch_size``. With a different batch size, ALMR, order of corpora or
    weight in past steps, the resumed run would repeat or skip rows.
    """
    batch_size = saved.global_batch_size
    if steps_done and config.global_batch_size != batch_size:
        raise UserError(
            f"global_batch_size was {batch_size}, is {config.global_batch_size}; it cannot change "
            "after the first step, because the number of consumed rows depends on it. Start a new "
            f"run from this one: --init-from {shlex.quote(config.output)} with a different output."
        )
    _check_stages("data.almr", saved.data.almr, config.data.almr, steps_done)
    for group in ("additional", "original"):
        _check_group(
            f"data.{group}", getattr(saved.data, group), getattr(config.data, group), steps_done
        )


def _check_group(
    group: str, before: Sequence[CorpusConfig], now: Sequence[CorpusConfig], steps_done: int
) -> None:
    """Raise UserError if the corpora of a group give other rows to past steps than before.

    A corpus whose weight was 0 in all past steps had no rows, so it can be added, removed and
    moved. All other corpora need the same weights in past steps and the same order.
    """
    old, new = ({corpus.name: corpus for corpus in corpora} for corpora in (before, now))
    for i, corpus in enumerate(now):
        if corpus.name in old:
            field = f"{group}.{i}.weight"
            _check_stages(field, old[corpus.name].weight, corpus.weight, steps_done)
        elif _had_rows(corpus, steps_done):
            stages = f"((0, 0), ({steps_done}, {_present_weight(corpus):g}))"
            raise UserError(
                f"{group}.{i}: corpus {corpus.name!r} is new, but its weight is above 0 in the "
                f"{steps_done} steps that are done. Set its weight to {stages}, and pass "
                f"{_flag('data')}; or set a different output folder."
            )
    for corpus in before:
        if corpus.name not in new and _had_rows(corpus, steps_done):
            kept = _shown(_past_stages(corpus.weight, steps_done))
            raise UserError(
                f"{group}: corpus {corpus.name!r} was removed, but the {steps_done} steps that are "
                f"done used it. Keep it with weight ({kept}, ({steps_done}, 0)), and pass "
                f"{_flag('data')}; or set a different output folder."
            )
    orders = [[c.name for c in corpora if _had_rows(c, steps_done)] for corpora in (before, now)]
    if orders[0] != orders[1]:
        raise UserError(
            f"{group}: the order of the corpora was {', '.join(orders[0])}, is "
            f"{', '.join(orders[1])}, and determines the rows of the {steps_done} steps that are "
            "done. Restore the order, or set a different output folder."
        )


def _check_stages(name: str, before: StagedValue, now: StagedValue, steps_done: int) -> None:
    """Raise UserError if the field ``name`` has another value in a past step than before."""
    done = _past_stages(before, steps_done)
    if _past_stages(now, steps_done) != done:
        raise UserError(
            f"{name} was {before}, is {now}, but {steps_done} steps are done already with the old "
            f"value. Keep the old stages and add the new one: ({_shown(done)}, ({steps_done}, "
            f"...)), and pass {_flag(name)}; or set a different output folder."
        )


def _past_stages(value: StagedValue, steps_done: int) -> list[tuple[int, float]]:
    """Return the stages, ``[(from_step, value), ...]``, that start before step ``steps_done``."""
    stages = value if isinstance(value, tuple) else ((0, value),)
    return [(step, float(one)) for step, one in stages if step < steps_done]


def _had_rows(corpus: CorpusConfig, steps_done: int) -> bool:
    return any(weight for _, weight in _past_stages(corpus.weight, steps_done))


def _present_weight(corpus: CorpusConfig) -> float:
    """Return the last weight of ``corpus`` that is above 0."""
    return next(float(weight) for _, weight in reversed(corpus.weight_stages()) if weight)


def _shown(stages: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"({step}, {value:g})" for step, value in stages)


def _covers(names: Sequence[str], field: str) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in names)


def _flag(name: str) -> str:
    return f"--allow-change {shlex.quote(name)}"


def _section(fingerprint: str) -> str:
    """Return the config section that a fingerprint such as ``heldout.zh`` belongs to."""
    return "data.heldout" if fingerprint.startswith("heldout.") else "data"


def _rule(name: str) -> str:
    """Return ``FieldTraits.on_resume`` of a field; ``name`` is like ``data.original.0.name``."""
    return _TRAITS.get(re.sub(r"\.\d+(?=\.|$)", "", name), FieldTraits()).on_resume


def _consequence(name: str, config: TrainConfig) -> str:
    schedule = config.optimizer.schedule
    if name == "num_steps" and schedule != "constant":
        return f"; the {schedule} learning-rate schedule now spans the new number of steps"
    return ""
