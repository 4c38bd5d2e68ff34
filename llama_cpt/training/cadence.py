"""Cadence of a run: the steps after which it evaluates, saves a checkpoint and reports.

Every function is pure in the number of steps done, so that a resumed run acts at the same steps.
"""

from llama_cpt.config.schema import EvaluationConfig, TrainConfig


def is_evaluation_step(config: EvaluationConfig, steps_done: int, num_steps: int) -> bool:
    """Return whether held-out loss is due after ``steps_done`` steps.

    It is due before the first step, every ``every_steps``, at the end, and, with
    ``early_evaluations``, at powers of two below ``every_steps``.
    """
    power_of_two = steps_done & (steps_done - 1) == 0
    return (
        steps_done in (0, num_steps)
        or steps_done % config.every_steps == 0
        or (config.early_evaluations and power_of_two and steps_done < config.every_steps)
    )


def is_checkpoint_step(config: TrainConfig, steps_done: int) -> bool:
    """Return whether a checkpoint is due after ``steps_done`` steps; the last step saves anyway."""
    return steps_done % config.checkpoint.every_steps == 0


def is_report_step(config: TrainConfig, steps_done: int) -> bool:
    """Return whether the metrics of a step are due; those of the first and the last always are."""
    return steps_done % config.log_every_steps == 0 or steps_done in (1, config.num_steps)
