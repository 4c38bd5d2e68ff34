"""The steps after which a run evaluates, saves a checkpoint and logs metrics.

The results of the functions depend only on their arguments, so a resumed run and an uninterrupted
run evaluate, save and log after the same steps.
"""

from llama_cpt.config.schema import EvaluationConfig, TrainConfig


def is_evaluation_step(config: EvaluationConfig, steps_done: int, num_steps: int) -> bool:
    """Return whether the held-out loss is measured after ``steps_done`` steps.

    The loss is measured before the first step, after every ``every_steps`` steps and after the
    last step. With ``early_evaluations``, it is also measured after 1, 2, 4, 8, ... steps, up to
    the largest power of two below ``every_steps``.
    """
    power_of_two = steps_done & (steps_done - 1) == 0
    return (
        steps_done in (0, num_steps)
        or steps_done % config.every_steps == 0
        or (config.early_evaluations and power_of_two and steps_done < config.every_steps)
    )


def is_checkpoint_step(config: TrainConfig, steps_done: int) -> bool:
    """Return whether ``steps_done`` is a multiple of ``checkpoint.every_steps``.

    The training loop saves a checkpoint if the result is True, and always after the last step.
    """
    return steps_done % config.checkpoint.every_steps == 0


def is_report_step(config: TrainConfig, steps_done: int) -> bool:
    """Return whether the metrics of step number ``steps_done``, counted from 1, are logged.

    The metrics of the first and the last step are always logged.
    """
    return steps_done % config.log_every_steps == 0 or steps_done in (1, config.num_steps)
