"""The reports of a run (log lines, metrics.jsonl, TensorBoard) and the check for divergence."""

from collections.abc import Generator, Mapping
import contextlib
import logging
import math
import time
from typing import Any

import jax
import numpy as np

from llama_cpt.checkpoint.health import DivergedError, dead_loss
from llama_cpt.checkpoint.retention import Retention
from llama_cpt.config.schema import PreferenceConfig
from llama_cpt.hardware.chips import CHIPS
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.objectives.preference_losses import REFERENCE_FREE
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import MetricsWriter
from llama_cpt.runtime.progress import duration
from llama_cpt.runtime.wandb_run import WandbRun
from llama_cpt.training.cadence import is_report_step
from llama_cpt.training.first_state import EVALUATION_PENDING
from llama_cpt.training.forgetting import ForgettingAlarm
from llama_cpt.training.goodput import Goodput
from llama_cpt.training.run import Run
from llama_cpt.training.spikes import SpikeMonitor
from llama_cpt.training.train_step import Limits

logger = logging.getLogger(__name__)


class Reporter:
    """Context manager that reports the steps and evaluations of a run.

    The metrics of a step are fetched after the next step has been dispatched. JAX dispatches steps
    asynchronously, so this delay keeps the devices busy while the host waits for the metrics.
    """

    def __init__(
        self,
        run: Run,
        first_step: int,
        clock: Goodput,
        retention: Retention | None = None,
        spikes: SpikeMonitor | None = None,
        alarm: ForgettingAlarm | None = None,
        wandb_run: WandbRun | None = None,
    ) -> None:
        self.run, self.clock, self.retention = run, clock, retention
        config = run.config
        self.spikes = spikes or SpikeMonitor(config.spikes, config.global_batch_size)
        self.alarm = alarm or ForgettingAlarm(config, run.heldout_samples)
        self.writer = MetricsWriter(
            config.output, first_step or None, enabled=is_primary(), wandb_run=wandb_run
        )
        self.names = [corpus.name for corpus in config.data.additional + config.data.original]
        self.tokens_per_step = config.global_batch_size * config.data.sequence_length
        chip = CHIPS.get(jax.devices()[0].device_kind)
        self.peak_flops = chip.peak_flops * run.program.mesh.size if chip else None
        self.flops_per_token = model_flops_per_token(
            config.architecture, config.data.sequence_length, frozen=config.lora is not None
        )
        self.evaluation_pending = False
        """True if a signal ended the last evaluation before it had results."""
        self._warned = False
        self._pending: tuple[int, dict[str, Any], float] | None = None
        # The first step is excluded from the throughput, because it includes the compilation.
        self._timed_at, self._timed_step, self._seconds_per_step = 0.0, -1, 0.0

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self.flush()
                _log(self.clock.summary())
        finally:
            self.writer.close()

    def step(self, done: int, metrics: dict[str, Any], rate: float) -> None:
        """Record that step number ``done`` was dispatched, and report the previous step.

        ``done`` counts from 1, ``metrics`` contains the metrics that the step returned, and
        ``rate`` is the learning rate of the step. Raises the errors of ``flush``.
        """
        self.flush()
        self._pending = done, metrics, rate

    def flush(self) -> None:
        """Report the last dispatched step, unless it has already been reported.

        Waits until the step has finished. Its metrics are written only if ``is_report_step``
        selects the step or if the step is a spike. Raises the errors of ``SpikeMonitor.observe``.
        """
        if self._pending is None:
            return
        (done, metrics, rate), self._pending = self._pending, None
        # Every step is checked, even if its metrics are not written, because a diverged model must
        # not be saved. The loss belongs to the weights before the update. The gradient norm shows
        # whether the weights after the update are finite.
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        is_spike = self.spikes.observe(done, loss, grad_norm)
        # The loss of an unusual batch says little about the weights.
        if not is_spike and self.retention is not None and self.retention.awaits(done - 1):
            self._judge(done - 1, per_token_loss(metrics["sums"]))
        config = self.run.config
        # The choice of steps depends only on their numbers, so that a resumed run writes the same
        # metrics as an uninterrupted run.
        due = is_report_step(config, done) or is_spike
        if due or self._timed_step < 0:
            self._update_throughput(done)
        if not due:
            return
        metrics = jax.device_get(metrics)
        means = mean_metrics(metrics["sums"])
        values = self._train_values(done, metrics, rate) | means
        self.writer.write(done, values)
        self._print_step(done, values, [name for name in means if name != "train/nll"])
        self._warn_of_unlearning(done, values)

    def step_limits(self, done: int) -> tuple[Limits, ...]:
        """Return the argument ``limits`` of step number ``done``, if the step has this argument."""
        return (self.spikes.limits(done),) if self.run.config.spikes.action == "skip" else ()

    def monitors(self) -> dict[str, Any]:
        """Return the values of the monitors that a checkpoint stores."""
        pending = {EVALUATION_PENDING: True} if self.evaluation_pending else {}
        return self.spikes.metadata() | self.alarm.metadata() | pending

    @contextlib.contextmanager
    def pause(self, part: str) -> Generator[None]:
        """Context manager for work other than training steps.

        The time of the ``with`` block is attributed to ``part``, one of ``goodput.PARTS``, and is
        excluded from the throughput.
        """
        self.flush()
        start = time.monotonic()
        with self.clock.measure(part):
            yield
        self._timed_at += time.monotonic() - start

    def evaluation(
        self,
        done: int,
        results: dict[str, Any],
        seconds: float,
        probed: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Report the held-out results after ``done`` steps, and return ``ForgettingAlarm.observe``.

        ``results`` maps a corpus name to a HeldoutResult. ``seconds`` is the duration of the
        evaluation. ``probed`` contains the results of the probe. If a loss is not finite, raises
        UserError if ``done`` is 0 and DivergedError otherwise.
        """
        for name, result in results.items():
            _require_finite(name, result.loss, done)
        self._judge(done, min(result.loss for result in results.values()))
        values = {"perf/evaluation_seconds": seconds, **(probed or {})}
        for name, result in results.items():
            values[f"eval/{name}/loss"] = result.loss
            values[f"eval/{name}/bits_per_byte"] = result.bits_per_byte
        changes = self.alarm.observe(done, {n: r.bits_per_byte for n, r in results.items()})
        values |= {f"eval/{name}/forgetting": change for name, change in changes.items()}
        self.writer.write(done, values | self.clock.values())
        bits = "  ".join(f"{name} {result.bits_per_byte:.4f}" for name, result in results.items())
        shown = "".join(f"  {name} {value:.4g}" for name, value in (probed or {}).items())
        _log(f"step {done:>6}  held-out bits per byte: {bits}{shown}")
        return changes

    def _judge(self, step: int, loss: float | None) -> None:
        """Record whether the weights after ``step`` are healthy.

        ``loss`` is the loss of these weights in nats per token. If it is None, the weights count as
        healthy.
        """
        if self.retention is None:
            return
        limit, problem = dead_loss(self.run.config.architecture.vocab_size), ""
        if loss is not None and loss >= limit:
            problem = (
                f"the loss after step {step} is {loss:.2f} nats per token, no better than guessing "
                f"({limit:.2f})"
            )
        self.retention.judge(step, problem)

    def _update_throughput(self, done: int) -> None:
        now = time.monotonic()
        if 0 <= self._timed_step < done:
            self._seconds_per_step = (now - self._timed_at) / (done - self._timed_step)
        self._timed_at, self._timed_step = now, done

    def _train_values(self, done: int, metrics: dict[str, Any], rate: float) -> dict[str, float]:
        """Return the metrics of step number ``done`` by name."""
        mixture, rows = self.run.mixture, self.spikes.rows_before(done)
        values = {
            "train/loss": float(metrics["loss"]),
            "train/grad_norm": float(metrics["grad_norm"]),
            "train/learning_rate": rate,
            "train/tokens": done * self.tokens_per_step,
            "mixture/almr_target": float(mixture.target_almr(rows)),
            "mixture/almr_realized": float(mixture.realized_almr(rows)),
        }
        sums, weights = (np.asarray(part, np.float64) for part in metrics["sums"]["corpus_loss"])
        num_additional = len(self.run.config.data.additional)
        groups = {"additional": slice(0, num_additional), "original": slice(num_additional, None)}
        groups |= {name: slice(i, i + 1) for i, name in enumerate(self.names)}
        for name, members in groups.items():
            if weights[members].sum():
                values[f"train/{name}/loss"] = sums[members].sum() / weights[members].sum()
        for name, epochs in zip(self.names, mixture.epochs(rows), strict=True):
            values[f"mixture/{name}/epochs"] = float(epochs)
        if self.run.config.spikes.action != "none":
            values["train/spikes"] = self.spikes.count
        if self._seconds_per_step:
            speed = self.tokens_per_step / self._seconds_per_step
            values["perf/tokens_per_second"] = speed
            if self.peak_flops:
                values["perf/mfu"] = speed * self.flops_per_token / self.peak_flops
        return values | self.clock.values()

    def _print_step(self, done: int, values: dict[str, float], also: list[str]) -> None:
        num_steps = self.run.config.num_steps
        parts = [f"step {done:>6}/{num_steps}", f"loss {values['train/loss']:.4f}"]
        added = len(self.run.config.data.additional)
        for group, names in (
            ("additional", self.names[:added]),
            ("original", self.names[added:]),
        ):
            # The mean of a group would hide which of its corpora the model learns or forgets.
            shown = names if len(names) > 1 else [group]
            means = {name: values.get(f"train/{name}/loss") for name in shown}
            parts += [f"{name} {loss:.4f}" for name, loss in means.items() if loss is not None]
        parts += [f"{name} {values[name]:.4g}" for name in also]
        parts.append(f"lr {values['train/learning_rate']:.2e}")
        parts.append(f"grad {values['train/grad_norm']:.2f}")
        parts.append(
            f"ALMR {values['mixture/almr_realized']:.4f} of {values['mixture/almr_target']:.4f}"
        )
        if "perf/tokens_per_second" in values:
            parts.append(f"{values['perf/tokens_per_second']:,.0f} tokens/s")
            if "perf/mfu" in values:
                parts.append(f"MFU {values['perf/mfu']:.1%}")
            parts.append(f"{duration((num_steps - done) * self._seconds_per_step)} left")
        _log("  ".join(parts))

    def _warn_of_unlearning(self, done: int, values: dict[str, float]) -> None:
        """Log a warning once per attempt if the chosen answers became much less likely.

        The limit is ``objective.chosen_logp_drop_warning`` nats below the mean log-probability of
        these answers under the reference model.
        """
        objective = self.run.config.objective
        if self._warned or not isinstance(objective, PreferenceConfig):
            return
        if objective.loss in REFERENCE_FREE or "rewards/chosen" not in values:
            return
        # The reward is beta times the log-ratio to the reference.
        drop = -values["rewards/chosen"] / objective.beta
        if drop > objective.chosen_logp_drop_warning:
            self._warned = True
            if is_primary():
                logger.warning(
                    "step %d: logps/chosen is %.1f nats below the reference model's, more than "
                    "objective.chosen_logp_drop_warning=%g. The model unlearns chosen answers; "
                    "decrease optimizer.peak_learning_rate, or increase objective.beta or "
                    "objective.nll_weight.",
                    done,
                    drop,
                    objective.chosen_logp_drop_warning,
                )


def _log(line: str) -> None:
    if is_primary():
        logger.info("%s", line)


def _require_finite(corpus: str, loss: float, done: int) -> None:
    if math.isfinite(loss):
        return
    if done == 0:
        raise UserError(
            f"held-out loss of {corpus} before the first step is {loss}, so the initial "
            "weights are invalid; check init_from."
        )
    raise DivergedError(f"held-out loss of {corpus} after step {done} is {loss}.")


def per_token_loss(sums: dict[str, Any]) -> float | None:
    """Return the mean NLL per target token in nats, or None if ``sums`` contains no NLL."""
    for name in ("train/nll", "nll"):
        if name in sums and float(sums[name][1]) > 0:
            total, weight = sums[name]
            return float(total) / float(weight)
    return None


def mean_metrics(sums: dict[str, Any]) -> dict[str, float]:
    """Return sum / weight of each metric in ``sums`` that has a positive weight.

    Adds ``rewards/margins``, the mean reward of chosen answers minus the mean reward of rejected
    answers. For pairs, this difference equals the mean margin. For KTO, it is the margin as defined
    by TRL. Omits ``corpus_loss``, which is a vector.
    """
    values = {
        name: float(total) / float(weight)
        for name, (total, weight) in sums.items()
        if name != "corpus_loss" and weight > 0
    }
    if {"rewards/chosen", "rewards/rejected"} <= values.keys():
        values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
    return values
