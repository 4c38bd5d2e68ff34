"""What a sweep is: a run, and the fields in which its trials differ."""

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
"""Of a field; the last are stages of an ALMR."""


ALMR_FIELD, LEARNING_RATE_FIELD = "data.almr", "optimizer.peak_learning_rate"


@dataclass(frozen=True)
class AxisConfig(ConfigSection):
    """One field and what it is set to: ``values``, or points ``between`` two numbers."""

    field: str
    """Dotted name, as in ``--data.almr``."""
    values: tuple[Value, ...] = ()
    between: tuple[float, ...] = ()
    """Lowest and highest: Sobol points, ``SweepConfig.points`` of them over all such axes."""
    scale: Literal["linear", "log"] = "linear"
    """Of Sobol points."""
    names: tuple[str, ...] = ()
    """Of the values in trials' names; empty: the values themselves."""

    def __post_init__(self) -> None:
        """Refuse an axis without points."""
        super().__post_init__()
        where = f"axis {self.field}"
        if bool(self.values) == bool(self.between):
            raise UserError(f"{where}: set either values or between.")
        if self.between and (len(self.between) != 2 or self.between[0] >= self.between[1]):
            raise UserError(f"{where}: between={self.between} must be a lower and a higher number.")
        if self.between and self.scale == "log":
            require_above_zero(f"{where}: between[0]", self.between[0])
        if self.names and len(set(self.names)) != len(self.values):
            raise UserError(f"{where}: names must be as many as values, each its own.")
        _require_names(where, self.names)
        if len(set(self.values)) < len(self.values):
            raise UserError(f"{where}: values={self.values}: name each once.")


@dataclass(frozen=True)
class SizeConfig(ConfigSection):
    """A model that every point of a sweep is trained at."""

    name: str
    model: ModelConfig
    init_from: str = option(is_path=True)


@dataclass(frozen=True)
class SweepConfig(ConfigSection):
    """Trials: ``train`` at every point of the axes' grid, and at every size and token budget."""

    output: str = option(is_path=True)
    """Folder of the trials, one each, and of ``results.csv`` (local or ``gs://``)."""
    train: TrainConfig
    """A trial but for what the axes set; its own ``output`` is not used."""
    pair: str
    """Name of the languages in the results, such as ``en+zh``."""
    axes: tuple[AxisConfig, ...] = ()
    cells: tuple[tuple[float, float], ...] = ()
    """ALMR and learning rate of single points, such as `fit_law --next` names, in place of axes of
    the two; the other axes' grid is trained at each."""
    points: int = 0
    """Sobol points over the axes that have ``between``; the other axes' grid is trained at each."""
    sizes: tuple[SizeConfig, ...] = ()
    """Empty: ``train.model`` alone."""
    token_budgets: tuple[int, ...] = ()
    """Tokens of a trial, ascending; empty: ``train.num_steps``. Several (``schedule="wsd"``) share
    one stable phase, from which each decays on its own."""
    decay_fraction: float = 0.2
    """Share of a token budget in which ``wsd`` decays."""
    law: str = option("", is_path=True)
    """A ``law.json``: the values of the learning rate's axis are then multiples of the rate that it
    finds best for the trial's ALMR."""
    heldout_groups: tuple[tuple[str, Literal["additional", "original"]], ...] = ()
    """Group of a held-out corpus that bears no training corpus's name."""
    keep_checkpoints: bool = False
    """Keep each trial's last checkpoint once its numbers are in; a sweep needs the numbers."""
    chip: str = "v5p"
    """What trials are priced on."""
    mfu: float = 0.4
    """Share of the chip's matrix peak that trials are taken to reach when they are priced."""

    def __post_init__(self) -> None:
        """Refuse what has no trials, and what is no sweep."""
        super().__post_init__()
        require_nonempty("", output=self.output, pair=self.pair)
        require_at_least(0, self, "", "points")
        self._check_points()
        self._check_budgets()
        if not 0 < self.mfu <= 1:
            raise UserError(f"mfu={self.mfu} must be above 0 and at most 1.")
        chips = [chip.name for chip in CHIPS.values()]
        if self.chip not in chips:
            near = did_you_mean(self.chip, chips)
            raise UserError(f"chip={self.chip!r} is none of {', '.join(chips)}{near}")
        self.groups()

    def _check_points(self) -> None:
        sobol = [axis.field for axis in self.axes if axis.between]
        if bool(sobol) != bool(self.points):
            told = f"axis {sobol[0]} has between" if sobol else "no axis has between"
            raise UserError(f"points={self.points}, but {told}.")
        if not self.axes and not self.cells:
            raise UserError("axes and cells are empty: a sweep needs at least one of them.")
        fields = [axis.field for axis in self.axes]
        _require_once(
            "axes and cells", [*([ALMR_FIELD, LEARNING_RATE_FIELD] if self.cells else []), *fields]
        )
        sizes = [size.name for size in self.sizes]
        _require_names("sizes", sizes)
        _require_once("sizes", sizes)
        if self.law and LEARNING_RATE_FIELD not in fields:
            raise UserError(
                f"law={self.law} sets learning rates, but no axis is {LEARNING_RATE_FIELD}."
            )
        if "output" in fields:
            raise UserError("axis output: trials name their own.")

    def _check_budgets(self) -> None:
        budgets = self.token_budgets
        if budgets and "num_steps" in (axis.field for axis in self.axes):
            raise UserError("axis num_steps: token_budgets set it.")
        if list(budgets) != sorted(set(budgets)) or 0 in budgets:
            raise UserError(f"token_budgets={budgets} must be above 0 and rise.")
        if len(budgets) > 1 and self.train.optimizer.schedule != "wsd":
            raise UserError(
                "several token_budgets share a stable phase: set train.optimizer.schedule=wsd, or "
                "sweep each budget on its own."
            )
        if not 0 < self.decay_fraction <= 0.5:
            raise UserError(f"decay_fraction={self.decay_fraction} must be above 0, at most 0.5.")

    def groups(self) -> dict[str, str]:
        """Held-out corpus -> its group."""
        data = self.train.data
        by_name = {c.name: "additional" for c in data.additional}
        by_name |= {c.name: "original" for c in data.original}
        by_name |= dict(self.heldout_groups)
        for corpus in data.heldout:
            if corpus.name not in by_name:
                raise UserError(
                    f"held-out corpus {corpus.name!r} bears no training corpus's name: say in "
                    f"heldout_groups whether it is additional or original."
                )
        found = {corpus.name: by_name[corpus.name] for corpus in data.heldout}
        for group in ("additional", "original"):
            if group not in found.values():
                raise UserError(
                    f"train.data.heldout has no corpus of the {group} group: a sweep measures both."
                )
        return found


def _require_names(where: str, names: Iterable[str]) -> None:
    for name in names:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(
                f"{where}: name {name!r} stands in a folder's name: letters, digits and ._+- only."
            )


def _require_once(where: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: {name!r} is named twice.")
