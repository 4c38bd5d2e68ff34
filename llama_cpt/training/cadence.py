"""The steps after which a run evaluates, saves a checkpoint and logs metrics.

The results of the functions depend only on their arguments, so a resumed run and an uninterrupted
run evaluate, save and log after the same steps.
"""

from llama_cpt.config.schema import EvaluationConfig, TrainConfig


def evaluation_steps(config: EvaluationConfig, num_steps: int) -> list[int]:
    """Return the numbers of steps done after which the config schedules a held-out evaluation.

    The loss is measured before the first step, after every ``every_steps`` steps and after the
    last step. With ``early_evaluations``, it is also measured after 1, 2, 4, 8, ... steps, up to
    the largest power of two below ``every_steps``.
    """
    steps = {0, num_steps, *range(config.every_steps, num_steps, config.every_steps)}
    if config.early_evaluations:
        end = min(config.every_steps, num_steps)
        steps |= {1 << power for power in range(end.bit_length()) if 1 << power < end}
    return sorted(steps)


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
