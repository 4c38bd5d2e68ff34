"""Table of all metrics that a run can write, with the key, unit and meaning of each metric.

``python docs/generate_reference.py`` renders docs/reference/metrics.md from this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric, or one metric per corpus if the key contains ``NAME``."""

    key: str
    """The key in ``metrics.jsonl``. ``NAME`` is a placeholder for the name of a corpus."""
    unit: str
    """The unit of the value. Empty for a number without a unit."""
    meaning: str
    """Markdown text that describes the value."""


TRAINING = (
    Metric(
        "train/loss",
        "nats per token",
        "Mean of the minimized loss over the batch of the step, including the z-loss and NLL "
        "terms. The loss is computed before the step updates the weights. A preference loss is in "
        "nats per pair, or in nats per answer for `kto`.",
    ),
    Metric(
        "train/nll",
        "nats per token",
        "Cross-entropy without the z-loss term. Written only for `NextTokenConfig`.",
    ),
    Metric(
        "train/additional/loss",
        "as `train/loss`",
        "Mean loss over the rows of the batch from the corpora in `data.additional`, without the "
        "z-loss term. Not written if the batch has no row from these corpora.",
    ),
    Metric(
        "train/original/loss",
        "as `train/loss`",
        "Mean loss over the rows of the batch from the corpora in `data.original`, without the "
        "z-loss term. Not written if the batch has no row from these corpora.",
    ),
    Metric(
        "train/NAME/loss",
        "as `train/loss`",
        "Mean loss over the rows of the batch from corpus `NAME`, without the z-loss term. Not "
        "written if the batch has no row from the corpus.",
    ),
    Metric("train/grad_norm", "", "Global norm of the gradient before clipping."),
    Metric("train/learning_rate", "", "Learning rate of the step."),
    Metric(
        "train/tokens",
        "tokens",
        "Number of tokens in the rows of all steps so far. Rows that rollbacks passed over do not "
        "count.",
    ),
)
PREFERENCES = (
    Metric(
        "rewards/chosen",
        "",
        "Mean reward of the chosen answers. The reward of an answer is `beta` times the difference "
        "between its log-probability and its reference log-probability. If the loss has no "
        "reference, the reward is `beta` times the log-probability.",
    ),
    Metric("rewards/rejected", "", "Mean reward of the rejected answers."),
    Metric("rewards/margins", "", "`rewards/chosen` minus `rewards/rejected`."),
    Metric(
        "rewards/accuracies",
        "share, 0 to 1",
        "Share of pairs in which the chosen answer has the higher reward. Not written for `kto`.",
    ),
    Metric("logps/chosen", "nats", "Mean log-probability of the chosen answers."),
    Metric("logps/rejected", "nats", "Mean log-probability of the rejected answers."),
    Metric(
        "nll",
        "nats per token",
        "Negative log-likelihood per token of the chosen answer, as a mean over pairs. Not written "
        "for `kto`.",
    ),
    Metric(
        "kl",
        "nats",
        "KTO's estimate of the KL divergence from the reference. Written only for `kto`.",
    ),
)
SPIKES = (
    Metric(
        "train/spikes",
        "spikes",
        "Number of spikes of the loss or the gradient norm so far, including those in steps that "
        "were rolled back. Written only if `spikes.action` is not `none`. The step of a spike that "
        "is not rolled back always has a line.",
    ),
)
HELD_OUT = (
    Metric(
        "eval/NAME/loss",
        "nats per token",
        "Loss on the held-out documents of corpus `NAME`, in windows of `data.sequence_length` "
        "tokens.",
    ),
    Metric(
        "eval/NAME/bits_per_byte",
        "bits per byte",
        "Negative base-2 log-likelihood of all held-out documents, divided by the number of UTF-8 "
        "bytes in their text.",
    ),
    Metric(
        "eval/NAME/forgetting",
        "",
        "`eval/NAME/bits_per_byte` divided by its reference, minus 1: the value before the first "
        "step, or, for a corpus in `data.additional`, the lowest value so far. Written only for "
        "the corpora that the forgetting alarm watches.",
    ),
    Metric(
        "probe/TASK",
        "as the metric of the benchmark",
        "Mean score of benchmark `TASK` over the questions of the few-shot probe. Written only "
        "with the option `--probe`.",
    ),
    Metric("perf/evaluation_seconds", "seconds", "Duration of the held-out evaluation and probe."),
)
MIXTURE = (
    Metric(
        "mixture/almr_target",
        "share, 0 to 1",
        "Target ALMR of the config, averaged over all rows consumed so far: the rows of all steps "
        "and the rows that rollbacks passed over.",
    ),
    Metric("mixture/almr_realized", "share, 0 to 1", "Actual ALMR of all rows consumed so far."),
    Metric(
        "mixture/NAME/epochs",
        "epochs",
        "Rows of corpus `NAME` consumed so far, divided by the number of rows in the corpus.",
    ),
)
WALL_TIME = (
    Metric(
        "perf/tokens_per_second",
        "tokens per second",
        "Number of tokens in the rows of the steps since the previous line, divided by the "
        "seconds since then. The seconds do not include evaluation, saving and the first step of a "
        "process, because this step includes compilation.",
    ),
    Metric(
        "perf/mfu",
        "share, 0 to 1",
        "Model FLOPs per second, divided by the peak FLOPs per second of all chips. Not written if "
        "`llama_cpt/hardware/chips.py` does not list the chip.",
    ),
    Metric(
        "perf/goodput",
        "share, 0 to 1",
        "`perf/seconds/step` divided by the sum of all `perf/seconds/*`.",
    ),
    Metric(
        "perf/unix_seconds", "seconds", "Time at which the line was written, since 1970-01-01 UTC."
    ),
    Metric("perf/seconds/step", "seconds", "Training steps, excluding the time of other parts."),
    Metric(
        "perf/seconds/startup",
        "seconds",
        "From the launch of the process to the first step, excluding the time of other parts.",
    ),
    Metric("perf/seconds/restore", "seconds", "Restoring a checkpoint."),
    Metric("perf/seconds/compile", "seconds", "Compilation."),
    Metric("perf/seconds/data", "seconds", "Training loop waiting for rows."),
    Metric("perf/seconds/evaluation", "seconds", "Held-out evaluation."),
    Metric("perf/seconds/save", "seconds", "Training loop waiting for a checkpoint to be saved."),
    Metric("perf/seconds/trace", "seconds", "Recording a profile."),
    Metric(
        "perf/seconds/repeated",
        "seconds",
        "Steps whose work was lost at a stop because it was not in a checkpoint. The resumed run "
        "repeats these steps.",
    ),
    Metric(
        "perf/seconds/stopped",
        "seconds",
        "From the last line that a stopped process wrote to the launch of the next process.",
    ),
)
SECTIONS = {
    "Training": TRAINING,
    "Preference losses": PREFERENCES,
    "Spikes": SPIKES,
    "Held-out text": HELD_OUT,
    "Mixture": MIXTURE,
    "Speed and wall time": WALL_TIME,
}
"""Metrics by the title of their section on the reference page."""

FORMER_KEYS = {
    "mixture/almr_asked": "mixture/almr_target",
    "mixture/almr_realised": "mixture/almr_realized",
    "mixture/NAME/passes": "mixture/NAME/epochs",
}
"""Map from metric keys of version 0.1 to present keys. ``NAME`` stands for a corpus name."""
