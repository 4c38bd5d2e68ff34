"""What a run tells: console lines, metrics.jsonl, TensorBoard, and a stop when the loss is lost."""

from collections.abc import Iterator
import contextlib
import math
import sys
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
from llama_cpt.training.goodput import Goodput
from llama_cpt.training.run import Run


class Reporter:
    """Reports steps as they finish: a step's numbers are fetched while the next one runs."""

    def __init__(
        self, run: Run, first_step: int, clock: Goodput, retention: Retention | None = None
    ) -> None:
        self.run, self.clock, self.retention = run, clock, retention
        config = run.config
        self.writer = MetricsWriter(config.output, first_step or None, enabled=is_primary())
        self.names = [corpus.name for corpus in config.data.additional + config.data.original]
        self.tokens_per_step = config.global_batch_size * config.data.sequence_length
        chip = CHIPS.get(jax.devices()[0].device_kind)
        self.peak_flops = chip.peak_flops * run.program.mesh.size if chip else None
        self.flops_per_token = model_flops_per_token(
            config.model, config.data.sequence_length, frozen=config.lora is not None
        )
        self._warned = False
        self._pending: tuple[int, dict[str, Any], float] | None = None
        # Throughput counts from the end of the first step: that one compiles.
        self._told_at, self._told_step, self._seconds_per_step = 0.0, -1, 0.0

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self.flush()
                self._print(self.clock.summary())
        finally:
            self.writer.close()

    def step(self, done: int, metrics: dict[str, Any], rate: float) -> None:
        """Step number ``done`` was dispatched; tell of the one before if it is due."""
        self.flush()
        self._pending = done, metrics, rate

    def flush(self) -> None:
        """Tell of the last step now. Raises DivergedError where its loss or gradient is lost."""
        if self._pending is None:
            return
        (done, metrics, rate), self._pending = self._pending, None
        # Every step's, also between logged ones: a checkpoint of a lost model must not be saved.
        # The loss is that of the weights before the update, the gradient norm tells of those after.
        for name in ("loss", "grad_norm"):
            if not math.isfinite(value := float(metrics[name])):
                raise DivergedError(f"{name} of step {done} is {value}.")
        if self.retention is not None and self.retention.awaits(done - 1):
            self._judge(done - 1, per_token_loss(metrics["sums"]))
        config = self.run.config
        # Which steps are told does not depend on where a run was resumed.
        due = done % config.log_every_steps == 0 or done in (1, config.num_steps)
        if due or self._told_step < 0:
            self._keep_time(done)
        if not due:
            return
        metrics = jax.device_get(metrics)
        told = mean_metrics(metrics["sums"])
        values = self._train_values(done, metrics, rate) | told
        self.writer.write(done, values)
        self._print_step(done, values, [name for name in told if name != "train/nll"])
        self._warn_of_fall(done, values)

    @contextlib.contextmanager
    def pause(self, part: str) -> Iterator[None]:
        """Around what is not training but ``part``: its time counts not against throughput."""
        self.flush()
        start = time.monotonic()
        with self.clock.measure(part):
            yield
        self._told_at += time.monotonic() - start

    def evaluation(self, done: int, results: dict[str, Any], seconds: float) -> None:
        """Report held-out results by corpus after ``done`` steps, which took ``seconds``.

        Raises DivergedError if a loss is not finite, UserError if it is that of the initial model.
        """
        for name, result in results.items():
            _require_finite(name, result.loss, done)
        self._judge(done, min(result.loss for result in results.values()))
        values = {"perf/evaluation_seconds": seconds}
        for name, result in results.items():
            values[f"eval/{name}/loss"] = result.loss
            values[f"eval/{name}/bits_per_byte"] = result.bits_per_byte
        self.writer.write(done, values | self.clock.values())
        told = "  ".join(f"{name} {result.bits_per_byte:.4f}" for name, result in results.items())
        self._print(f"step {done:>6}  held-out bits per byte: {told}")

    def _judge(self, step: int, loss: float | None) -> None:
        """Record whether the weights after ``step``, whose loss per token this is, are healthy."""
        if self.retention is None:
            return
        limit, problem = dead_loss(self.run.config.model.vocab_size), ""
        if loss is not None and loss >= limit:
            problem = (
                f"the loss after step {step} is {loss:.2f} nats per token, no better than guessing "
                f"({limit:.2f})"
            )
        self.retention.judge(step, problem)

    def _keep_time(self, done: int) -> None:
        now = time.monotonic()
        if 0 <= self._told_step < done:
            self._seconds_per_step = (now - self._told_at) / (done - self._told_step)
        self._told_at, self._told_step = now, done

    def _train_values(self, done: int, metrics: dict[str, Any], rate: float) -> dict[str, float]:
        """Metric key -> value of one step, by STYLE's names."""
        mixture, rows = self.run.mixture, done * self.run.config.global_batch_size
        values = {
            "train/loss": float(metrics["loss"]),
            "train/grad_norm": float(metrics["grad_norm"]),
            "train/learning_rate": rate,
            "train/tokens": done * self.tokens_per_step,
            "mixture/almr_target": float(mixture.target_almr(rows)),
            "mixture/almr_realized": float(mixture.realized_almr(rows)),
        }
        sums, weights = (np.asarray(part, np.float64) for part in metrics["sums"]["corpus_loss"])
        added = len(self.run.config.data.additional)
        groups = {"additional": slice(0, added), "original": slice(added, None)}
        groups |= {name: slice(i, i + 1) for i, name in enumerate(self.names)}
        for name, members in groups.items():
            if weights[members].sum():
                values[f"train/{name}/loss"] = sums[members].sum() / weights[members].sum()
        for name, passes in zip(self.names, mixture.epochs(rows), strict=True):
            values[f"mixture/{name}/epochs"] = float(passes)
        if self._seconds_per_step:
            speed = self.tokens_per_step / self._seconds_per_step
            values["perf/tokens_per_second"] = speed
            if self.peak_flops:
                values["perf/mfu"] = speed * self.flops_per_token / self.peak_flops
        return values | self.clock.values()

    def _print_step(self, done: int, values: dict[str, float], also: list[str]) -> None:
        num_steps = self.run.config.num_steps
        parts = [f"step {done:>6}/{num_steps}", f"loss {values['train/loss']:.4f}"]
        for group in ("additional", "original"):
            if (key := f"train/{group}/loss") in values:
                parts.append(f"{group} {values[key]:.4f}")
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
        self._print("  ".join(parts))

    def _warn_of_fall(self, done: int, values: dict[str, float]) -> None:
        """Once, where chosen answers have become much less likely than under the reference."""
        objective = self.run.config.objective
        if self._warned or not isinstance(objective, PreferenceConfig):
            return
        if objective.loss in REFERENCE_FREE or "rewards/chosen" not in values:
            return
        fallen = -values["rewards/chosen"] / objective.beta
        if fallen > objective.chosen_logp_drop_warning:
            self._warned = True
            if is_primary():
                print(
                    f"warning: step {done}: logps/chosen is {fallen:.1f} nats below the "
                    f"reference's, beyond objective.chosen_logp_drop_warning="
                    f"{objective.chosen_logp_drop_warning:g}: chosen answers are being unlearned. "
                    "Lower optimizer.peak_learning_rate, or raise objective.beta or nll_weight.",
                    file=sys.stderr,
                )

    def _print(self, line: str) -> None:
        if is_primary():
            print(line, flush=True)


def _require_finite(corpus: str, loss: float, done: int) -> None:
    if math.isfinite(loss):
        return
    if done == 0:
        raise UserError(
            f"held-out loss of {corpus} before the first step is {loss}: the initial weights are "
            "broken; check init_from."
        )
    raise DivergedError(f"held-out loss of {corpus} after step {done} is {loss}.")


def per_token_loss(sums: dict[str, Any]) -> float | None:
    """Mean negative log-likelihood per target token, None if the objective does not report it."""
    for name in ("train/nll", "nll"):
        if name in sums and float(sums[name][1]) > 0:
            total, weight = sums[name]
            return float(total) / float(weight)
    return None


def mean_metrics(sums: dict[str, Any]) -> dict[str, float]:
    """Metric key -> mean of every (sum, weight) of ``sums`` that has a weight.

    ``rewards/margins`` is the chosen mean less the rejected one: for pairs that is the mean margin,
    and TRL's KTO has it so too. ``corpus_loss`` is in parts and not among them.
    """
    values = {
        name: float(total) / float(weight)
        for name, (total, weight) in sums.items()
        if name != "corpus_loss" and weight > 0
    }
    if {"rewards/chosen", "rewards/rejected"} <= values.keys():
        values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
    return values
