"""The config of a sweep: the config of a trial, and the fields that vary between trials."""

from collections.abc import Iterable
from dataclasses import dataclass, field
import re
from typing import Literal

from llama_cpt.config.fields import (
    ConfigSection,
    did_you_mean,
    option,
    require_above_zero,
    require_at_least,
    require_nonempty,
    traits,
)
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.hardware.chips import CHIPS
from llama_cpt.runtime.errors import UserError

Value = bool | int | float | str | tuple[tuple[int, float], ...]
"""Type of a swept value. A tuple is an ALMR or weight that changes at given steps."""

ALMR_FIELD, LEARNING_RATE_FIELD = "data.almr", "optimizer.peak_learning_rate"


@dataclass(frozen=True)
class AxisConfig(ConfigSection):
    """A field that varies between trials.

    The values are either ``values`` or Sobol points ``between`` two bounds.
    """

    field: str
    """Dotted name of the field in TrainConfig, such as ``data.almr``."""
    values: tuple[Value, ...] = ()
    between: tuple[float, ...] = ()
    """Lower and upper bound of the Sobol points; ``SweepConfig.points`` is the number of points."""
    scale: Literal["linear", "log"] = "linear"
    """Scale on which the Sobol points are uniform."""
    names: tuple[str, ...] = ()
    """Texts that represent ``values`` in the names of trials; if empty, the values are used."""

    def __post_init__(self) -> None:
        """Validate the values, the bounds and the names."""
        super().__post_init__()
        where = f"axis {self.field}"
        if bool(self.values) == bool(self.between):
            raise UserError(f"{where}: set either values or between, not both.")
        if self.between and (len(self.between) != 2 or self.between[0] >= self.between[1]):
            raise UserError(
                f"{where}: between={self.between} must be two numbers, the lower one first."
            )
        if self.between and self.scale == "log":
            require_above_zero(f"{where}: between[0]", self.between[0])
        if self.names and len(set(self.names)) != len(self.values):
            raise UserError(
                f"{where}: names={self.names} must be {len(self.values)} different names, one per "
                "value."
            )
        _require_names(where, self.names)
        if len(set(self.values)) < len(self.values):
            raise UserError(f"{where}: values={self.values} has duplicates; remove them.")


@dataclass(frozen=True)
class SizeConfig(ConfigSection):
    """A model size; the sweep trains every combination of axis values at each size."""

    name: str
    model: ModelConfig | None = None
    """The architecture. If it is left out, it is the architecture of ``init_from``."""
    init_from: str = option("", is_path=True)
    """Hugging Face folder or run folder with the initial weights; empty for random weights."""


@dataclass(frozen=True)
class SweepConfig(ConfigSection):
    """A sweep that trains every combination of axis values, model size and token budget."""

    output: str = field(metadata=traits(is_path=True))
    """Folder (local or ``gs://``) for ``results.csv`` and one subfolder per trial."""
    train: TrainConfig
    """The config of a trial. The axes override its fields, and its ``output`` is ignored."""
    pair: str
    """Name of the language pair in the results, such as ``en+zh``."""
    axes: tuple[AxisConfig, ...] = ()
    cells: tuple[tuple[float, float], ...] = ()
    """Pairs of ALMR and learning rate, such as those that ``fit_law --next`` prints. They replace
    axes for these two fields. Each pair is combined with all values of the axes."""
    points: int = 0
    """Number of Sobol points in the space of the axes with ``between``. Each point is combined with
    all ``values`` of the remaining axes."""
    sizes: tuple[SizeConfig, ...] = ()
    """Model sizes; if empty, the only size is ``train.model``."""
    token_budgets: tuple[int, ...] = ()
    """Numbers of tokens per trial, in ascending order; if empty, ``train.num_steps`` sets the only
    budget. Several budgets need ``schedule="wsd"``: a single stable phase is trained for all
    budgets, and a separate decay phase for each budget."""
    decay_fraction: float = 0.2
    """The ``wsd`` schedule decays the learning rate over this last fraction of a token budget."""
    law: str = option("", is_path=True)
    """Path of a ``law.json``. If set, the values of the learning-rate axis are multiples of the
    law's optimal rate for the trial's ALMR."""
    heldout_groups: tuple[tuple[str, Literal["additional", "original"]], ...] = ()
    """Pairs (name of a held-out corpus, group). A held-out corpus with the name of a training
    corpus belongs to the group of that corpus and needs no entry."""
    keep_checkpoints: bool = False
    """True to keep the last checkpoint of each trial after its results are written."""
    chip: str = "v5p"
    """Name of the chip for which chip-hours are estimated."""
    mfu: float = 0.4
    """Model FLOPs utilization assumed for the estimate of chip-hours."""

    def __post_init__(self) -> None:
        """Validate the axes, the budgets, the chip and the groups of held-out corpora."""
        super().__post_init__()
        require_nonempty("", output=self.output, pair=self.pair)
        require_at_least(0, self, "", "points")
        self._check_points()
        self._check_budgets()
        if not 0 < self.mfu <= 1:
            raise UserError(f"mfu={self.mfu} must be above 0 and at most 1.")
        chips = [chip.name for chip in CHIPS.values()]
        if self.chip not in chips:
            hint = did_you_mean(self.chip, chips)
            raise UserError(f"chip={self.chip!r} must be one of {', '.join(chips)}{hint}")
        self.groups()  # Raises UserError for a held-out corpus without a group.

    def _check_points(self) -> None:
        sobol = [axis.field for axis in self.axes if axis.between]
        if bool(sobol) != bool(self.points):
            reason = f"axis {sobol[0]} has between" if sobol else "no axis has between"
            raise UserError(f"points={self.points}, but {reason}; set both or neither.")
        if not self.axes and not self.cells:
            raise UserError("axes and cells are empty; set at least one of them.")
        fields = [axis.field for axis in self.axes]
        _require_once(
            "axes and cells", [*([ALMR_FIELD, LEARNING_RATE_FIELD] if self.cells else []), *fields]
        )
        sizes = [size.name for size in self.sizes]
        _require_names("sizes", sizes)
        _require_once("sizes", sizes)
        if self.law and LEARNING_RATE_FIELD not in fields:
            raise UserError(
                f"law={self.law} scales the values of axis {LEARNING_RATE_FIELD}; add that axis."
            )
        if "output" in fields:
            raise UserError("axis output: remove it; each trial has its own folder.")

    def _check_budgets(self) -> None:
        budgets = self.token_budgets
        if budgets and "num_steps" in (axis.field for axis in self.axes):
            raise UserError("axis num_steps: remove it, or token_budgets, which set num_steps.")
        if list(budgets) != sorted(set(budgets)) or 0 in budgets:
            raise UserError(f"token_budgets={budgets} must be above 0 and ascending.")
        if len(budgets) > 1 and self.train.optimizer.schedule != "wsd":
            raise UserError(
                f"token_budgets={budgets} share a stable phase; set "
                "train.optimizer.schedule=wsd, or run one sweep per budget."
            )
        if not 0 < self.decay_fraction <= 0.5:
            raise UserError(
                f"decay_fraction={self.decay_fraction} must be above 0 and at most 0.5."
            )

    def groups(self) -> dict[str, str]:
        """Return the group (``additional`` or ``original``) of each held-out corpus by corpus name.

        Raises UserError if a corpus has no group or a group has no corpus.
        """
        data = self.train.data
        by_name = {c.name: "additional" for c in data.additional}
        by_name |= {c.name: "original" for c in data.original}
        by_name |= dict(self.heldout_groups)
        for corpus in data.heldout:
            if corpus.name not in by_name:
                raise UserError(
                    f"held-out corpus {corpus.name!r} does not have the name of a training corpus; "
                    "add it to heldout_groups as additional or original."
                )
        found = {corpus.name: by_name[corpus.name] for corpus in data.heldout}
        for group in ("additional", "original"):
            if group not in found.values():
                raise UserError(
                    f"train.data.heldout has no corpus of the {group} group; a sweep needs both."
                )
        return found


def _require_names(where: str, names: Iterable[str]) -> None:
    for name in names:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(
                f"{where}: name {name!r} becomes part of a folder's name; use letters, digits and "
                "._+-."
            )


def _require_once(where: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: {name!r} appears twice; remove one.")
