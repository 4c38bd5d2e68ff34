"""The config of a sweep: a run, and the fields in which its trials differ."""

from collections.abc import Iterable
from dataclasses import dataclass
import re
from typing import Literal

from llama_cpt.config.fields import (
    ConfigSection,
    did_you_mean,
    option,
    require_above_zero,
    require_at_least,
    require_nonempty,
)
from llama_cpt.config.schema import ModelConfig, TrainConfig
from llama_cpt.hardware.chips import CHIPS
from llama_cpt.runtime.errors import UserError

Value = bool | int | float | str | tuple[tuple[int, float], ...]
"""A value of a field; the last type is the stages of an ALMR."""

ALMR_FIELD, LEARNING_RATE_FIELD = "data.almr", "optimizer.peak_learning_rate"


@dataclass(frozen=True)
class AxisConfig(ConfigSection):
    """A field and its values in the trials: ``values``, or points ``between`` two numbers."""

    field: str
    """Dotted name of the field, as in ``--data.almr``."""
    values: tuple[Value, ...] = ()
    between: tuple[float, ...] = ()
    """The lowest and highest of ``SweepConfig.points`` Sobol points over all such axes."""
    scale: Literal["linear", "log"] = "linear"
    """Scale on which the Sobol points are spread."""
    names: tuple[str, ...] = ()
    """Names of the values in the trials' names; empty: the values themselves."""

    def __post_init__(self) -> None:
        """Validate the values or the bounds."""
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
    """A model size; every point of the sweep is trained at each size."""

    name: str
    model: ModelConfig
    init_from: str = option(is_path=True)


@dataclass(frozen=True)
class SweepConfig(ConfigSection):
    """Trials: ``train`` at every point of the axes' grid, with every size and token budget."""

    output: str = option(is_path=True)
    """Folder (local or ``gs://``) of ``results.csv`` and of one folder per trial."""
    train: TrainConfig
    """The config of a trial except for the fields that the axes set; ``output`` is not used."""
    pair: str
    """Name of the language pair in the results, such as ``en+zh``."""
    axes: tuple[AxisConfig, ...] = ()
    cells: tuple[tuple[float, float], ...] = ()
    """ALMR and learning rate of single points, such as `fit_law --next` prints, instead of axes of
    the two; the grid of the other axes is trained at each."""
    points: int = 0
    """Number of Sobol points over the axes that have ``between``; the grid of the other axes is
    trained at each."""
    sizes: tuple[SizeConfig, ...] = ()
    """Model sizes; empty: only ``train.model``."""
    token_budgets: tuple[int, ...] = ()
    """Tokens per trial, ascending; empty: ``train.num_steps``. Several (``schedule="wsd"``) share
    one stable phase, from which each decays separately."""
    decay_fraction: float = 0.2
    """Share of a token budget over which ``wsd`` decays."""
    law: str = option("", is_path=True)
    """A ``law.json``; if set, the values of the learning rate's axis are multiples of the law's
    optimal rate for the trial's ALMR."""
    heldout_groups: tuple[tuple[str, Literal["additional", "original"]], ...] = ()
    """Groups of held-out corpora that do not have the name of a training corpus."""
    keep_checkpoints: bool = False
    """Keep the last checkpoint of each trial after its results are written."""
    chip: str = "v5p"
    """The chip for the estimate of chip-hours."""
    mfu: float = 0.4
    """Share of the chip's matrix peak that the estimate of chip-hours assumes."""

    def __post_init__(self) -> None:
        """Validate the points, the budgets and the groups."""
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
        """Map each held-out corpus to its group."""
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
                f"{where}: name {name!r} is part of a folder's name; use letters, digits and ._+-."
            )


def _require_once(where: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: {name!r} appears twice; remove one.")
