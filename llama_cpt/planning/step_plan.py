"""All that a compiled step tells, gathered."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
import math
from typing import Any

import jax

from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.batch import Batch
from llama_cpt.hardware.topologies import Topology
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.planning.buffers import Peak, PeakBreakdown, break_down_peak
from llama_cpt.planning.compiling import CompiledProgram, ProgramFigures
from llama_cpt.planning.roofline import MFU_RANGE, Roofline, roofline
from llama_cpt.training.train_step import TrainState


@dataclass(frozen=True)
class Workload:
    """What a config asks for, counted by hand."""

    tokens_per_step: int
    tokens: int
    """Of all steps."""
    flops_per_token: float
    """``model_flops_per_token``: 6 N, or 4 N beside adapters, and attention."""
    per_weight: int
    rows: int
    """Of one device in one micro-batch."""
    num_microbatches: int
    sequence_length: int


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


@dataclass(frozen=True)
class Throughput:
    """Of the steps at some share of the chips' peak."""

    mfu: float
    tokens_per_day: float
    days: float
    """For the config's tokens."""
    chip_hours: float


@dataclass(frozen=True)
class Plan:
    """One config on one topology."""

    topology: Topology
    mesh: dict[str, int]
    remat: str
    work: Workload
    memory: Memory
    program: ProgramFigures
    peak_breakdown: PeakBreakdown
    """Of the arrays at the program's peak."""
    roofline: Roofline

    @property
    def model_flops(self) -> float:
        """Of one device a step."""
        return self.work.tokens_per_step * self.work.flops_per_token / self.topology.devices

    @property
    def mfu_serial(self) -> float:
        """Model FLOPs utilisation where nothing is done at once."""
        return self.model_flops / self.topology.chip.peak_flops / self.roofline.serial_seconds

    @property
    def mfu_overlapped(self) -> float:
        """The most that the roofline allows."""
        return self.model_flops / self.topology.chip.peak_flops / self.roofline.overlapped_seconds

    @property
    def throughputs(self) -> list[Throughput]:
        """At ``MFU_RANGE``, or the most that the roofline allows where that is less.

        The range is of products in bfloat16: what narrower ones save comes off a step's time.
        """
        chip, matrix = self.topology.chip, self.program.matrix
        saved = (matrix.total - matrix.as_bfloat16(chip)) / chip.peak_flops
        least = self.model_flops / chip.peak_flops
        seconds = {max(least / mfu - saved, self.roofline.overlapped_seconds) for mfu in MFU_RANGE}
        return [self._pace(one) for one in sorted(seconds, reverse=True)]

    def _pace(self, seconds: float) -> Throughput:
        """Of steps that take so long."""
        mfu = self.model_flops / self.topology.chip.peak_flops / seconds
        steps = 86400 / seconds
        days = self.work.tokens / self.work.tokens_per_step / steps
        return Throughput(
            mfu, self.work.tokens_per_step * steps, days, days * 24 * self.topology.chips
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values: what ``--json`` prints."""
        program = asdict(self.program)
        program["matrix"] |= {"total": self.program.matrix.total}
        program["live"] = {
            "bytes": self.program.live.bytes,
            "arrays": [
                {"bytes": size, "count": count, "shape": shape, "origin": origin}
                for size, count, shape, origin in largest_buffers(self.program.live, 20)
            ],
        }
        return {
            **describe_target(self.topology, self.mesh),
            "remat": self.remat,
            "work": asdict(self.work),
            "memory": asdict(self.memory) | {"left": self.memory.left},
            "model_flops": self.model_flops,
            "program": program,
            "peak_parts": asdict(self.peak_breakdown),
            "roofline": self.roofline.seconds,
            "bound": self.roofline.bound,
            "mfu": {"in_turn": self.mfu_serial, "overlapped": self.mfu_overlapped},
            "paces": [asdict(pace) for pace in self.throughputs],
        }


def describe_target(topology: Topology, mesh: dict[str, int]) -> dict[str, Any]:
    """The chips that a config is planned for, as plain values."""
    return {
        "topology": topology.text,
        "name": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "devices": topology.devices,
        "mesh": mesh,
    }


def workload(config: TrainConfig, rows: int) -> Workload:
    """Of ``config`` where a device has ``rows`` of a micro-batch."""
    length = config.data.sequence_length
    tokens = config.global_batch_size * length
    frozen = config.lora is not None
    flops = model_flops_per_token(config.model, length, frozen=frozen)
    return Workload(
        tokens_per_step=tokens,
        tokens=tokens * config.num_steps,
        flops_per_token=flops,
        per_weight=4 if frozen else 6,
        rows=rows,
        num_microbatches=config.num_microbatches,
        sequence_length=length,
    )


def make_plan(
    config: TrainConfig,
    topology: Topology,
    compiled: CompiledProgram,
    *,
    state: TrainState,
    batch: Batch,
) -> Plan:
    """Of a compiled step; its arguments are the abstract ``state`` and ``batch``."""
    tokens = jax.tree.leaves(batch)[0]
    mesh, rows = dict(tokens.sharding.mesh.shape), tokens.sharding.shard_shape(tokens.shape)[1]
    chip, work, program = topology.chip, workload(config, rows), compiled.program
    return Plan(
        topology,
        mesh,
        config.compute.remat,
        work,
        memory_of(compiled, state, batch, chip.memory_bytes),
        program,
        break_down_peak(
            program.live,
            state.trained,
            layers=config.model.num_layers,
            tokens=rows * work.sequence_length // mesh["context"],
        ),
        roofline(
            chip,
            flops=program.matrix.as_bfloat16(chip),
            hbm=float(program.hbm_bytes),
            sent=program.collectives,
            mesh=mesh,
            slices=topology.slices,
        ),
    )


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


def largest_buffers(live: Peak, most: int) -> list[tuple[int, int, str, str]]:
    """The largest arrays of a peak, alike ones together: (bytes, how many, shape, origin)."""
    counted = Counter((str(one.shape), one.origin, one.bytes) for one in live.buffers)
    rows = [(size * n, n, shape, origin) for (shape, origin, size), n in counted.items()]
    return sorted(rows, reverse=True)[:most]
