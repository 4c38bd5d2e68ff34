"""The config sections of the monitors of a run: spikes and forgetting."""

from dataclasses import dataclass
from typing import Literal

from llama_cpt.config.fields import ConfigSection, option, require_above_zero, require_at_least
from llama_cpt.runtime.errors import UserError

MAX_WINDOW = 10_000
"""Maximum of ``spikes.window``, because checkpoints contain the values of the window."""


def _guards_update(config: "SpikeConfig") -> bool:
    """Return whether the compiled step can leave out its update."""
    return config.action == "skip"


@dataclass(frozen=True)
class SpikeConfig(ConfigSection):
    """Options for spikes: steps with a loss or gradient norm far above that of recent steps.

    A value is a spike if it exceeds the median of recent steps by more than ``loss_threshold`` or
    ``grad_norm_threshold`` standard deviations. The standard deviation is estimated as 1.4826 times
    the median absolute deviation. It is at least 1 % of the median for the loss, and 5 % for the
    gradient norm.
    """

    action: Literal["none", "log", "skip", "rollback"] = option(
        "none", compiled=_guards_update, on_resume="warn"
    )
    """Treatment of a spike. ``none``: steps are not checked. ``log``: a warning. ``skip``: a
    warning, and the step does not change the weights and the optimizer state. ``rollback``: the run
    returns to an earlier checkpoint and does not use the rows since that checkpoint again. With
    ``skip`` and ``rollback``, NaN and infinity are spikes; otherwise they end the run."""
    loss_threshold: float = option(10.0, compiled=False, on_resume="warn")
    """Number of standard deviations above the median at which a spike of the loss begins."""
    grad_norm_threshold: float = option(20.0, compiled=False, on_resume="warn")
    """The same number for the gradient norm, which varies more from batch to batch."""
    window: int = option(64, compiled=False, on_resume="warn")
    """Number of recent steps over which the median is computed. The step directly before the
    checked step is not included. Until the run has done this many steps, only NaN and infinity are
    spikes."""
    rollback_steps: int = option(20, compiled=False, on_resume="warn")
    """Minimum number of steps that a rollback takes back, including the step with the spike. The
    run returns to the newest checkpoint of a multiple of ``checkpoint.every_steps`` that is old
    enough, or to its start."""
    max_actions: int = option(10, compiled=False, on_resume="warn")
    """Maximum number of skipped updates or rollbacks. The next spike ends the run with an error."""

    def __post_init__(self) -> None:
        """Validate the ranges of the values."""
        super().__post_init__()
        require_above_zero("spikes.loss_threshold", self.loss_threshold)
        require_above_zero("spikes.grad_norm_threshold", self.grad_norm_threshold)
        require_at_least(4, self, "spikes", "window")
        require_at_least(1, self, "spikes", "rollback_steps", "max_actions")
        if self.window > MAX_WINDOW:
            raise UserError(f"spikes.window={self.window} must be at most {MAX_WINDOW}.")


@dataclass(frozen=True)
class ForgettingConfig(ConfigSection):
    """Options of the forgetting alarm, which watches the held-out bits per byte of corpora.

    The alarm is raised if the bits per byte of a corpus exceed (1 + ``limit``) times their
    reference. The reference is the value before the first step. For a held-out corpus with the name
    of a corpus in ``data.additional``, it is the lowest value of the run so far.
    """

    action: Literal["none", "warn", "stop"] = option("none", compiled=False, on_resume="warn")
    """Effect of the alarm: none, a warning, or an error that ends the run and names the checkpoint
    to return to."""
    limit: float = option(0.1, compiled=False, on_resume="warn")
    """Maximum relative increase of the bits per byte."""
    corpora: tuple[str, ...] = option((), compiled=False, on_resume="warn")
    """Names of the held-out corpora to watch. Empty means all corpora in ``data.heldout``; each
    corpus in ``data.original`` then needs a held-out corpus with its name."""

    def __post_init__(self) -> None:
        """Validate the limit."""
        super().__post_init__()
        require_at_least(0, self, "forgetting", "limit")

    def watched(self, original: tuple[str, ...], heldout: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the watched held-out corpora; empty if ``action`` is ``none``.

        ``original`` and ``heldout`` contain the names of the corpora in ``data.original`` and
        ``data.heldout``. Raises UserError if a corpus that must be watched is not in
        ``data.heldout``, or if no corpus is watched.
        """
        if self.action == "none":
            return ()
        for name in self.corpora or original:
            if name not in heldout:
                known = ", ".join(heldout) or "none"
                raise UserError(
                    f"forgetting.action={self.action}: no held-out corpus is named {name!r} "
                    f"(data.heldout: {known}); add it to data.heldout, or set forgetting.corpora."
                )
        if not heldout:
            raise UserError(
                f"forgetting.action={self.action}: data.heldout is empty, so no corpus is watched; "
                "add held-out corpora."
            )
        return self.corpora or heldout
