"""Bytes of one chip: what the arguments are, what the compiler adds, what the chip has."""

from dataclasses import dataclass, replace
import math
from typing import Any

import jax

from llama_cpt.planning.compiling import CompiledProgram


@dataclass(frozen=True)
class PassMemory:
    """Of one device, for what is done between the steps or before them, in bytes."""

    peak: int
    """The most at once, with what else is there."""
    refused: bool = False
    """Whether the compiler refuses it; it needs more than ``peak`` then."""


@dataclass(frozen=True)
class Memory:
    """Of one device, in bytes."""

    parameters: int
    """Trained and frozen."""
    optimizer: int
    batch: int
    arguments: int
    """All of the above as the compiler lays them out: padding included."""
    temporaries: int
    """Gradients, activations, gathered weights: what the compiler reserves beside arguments."""
    code: int
    peak: int
    """The most at once, arguments included."""
    available: int
    """What the chip has; the runtime keeps some of it."""
    loading: PassMemory | None = None
    """Of the weights beside adapters as they are read, in float32, before any step."""
    reference: PassMemory | None = None
    """Of the pass that scores preferences before the first step, where there is one."""
    evaluation: PassMemory | None = None
    """Of the pass over held-out text, the optimizer's moments beside it, where there is one."""

    @property
    def left(self) -> int:
        """What no program of the run needs of the chip's memory; below 0 where it does not fit."""
        return self.available - max([self.peak + self.code, *(one.peak for one in self._passes)])

    @property
    def fits(self) -> bool:
        """Whether the run is within the chip's memory."""
        return self.left >= 0 and not any(one.refused for one in self._passes)

    @property
    def fits_but_for_evaluation(self) -> bool:
        """Whether only the pass over held-out text is too large."""
        return not self.fits and replace(self, evaluation=None).fits

    @property
    def _passes(self) -> list[PassMemory]:
        return [one for one in (self.loading, self.reference, self.evaluation) if one]


def memory_of(compiled: CompiledProgram, state: Any, batch: Any, available: int) -> Memory:
    """Of a compiled step whose arguments are the abstract ``state`` and ``batch``."""
    return Memory(
        parameters=device_bytes((state.trained, state.frozen)),
        optimizer=device_bytes(state.opt_state),
        batch=device_bytes(batch),
        arguments=compiled.arguments,
        temporaries=compiled.temporaries,
        code=compiled.code,
        peak=compiled.peak,
        available=available,
    )


def device_bytes(tree: Any) -> int:
    """Of arrays, or their shapes and shardings, on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
