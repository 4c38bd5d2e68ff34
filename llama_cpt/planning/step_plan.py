"""The plan of a step: workload, memory, compiled figures, roofline and throughput."""

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
    """The work that a config defines, computed from the config alone."""

    tokens_per_step: int
    tokens: int
    """Tokens of the whole run."""
    flops_per_token: float
    """``model_flops_per_token``: 6 N (4 N with LoRA) and causal attention."""
    per_weight: int
    rows: int
    """Rows per device and micro-batch."""
    num_microbatches: int
    sequence_length: int


@dataclass(frozen=True)
class PassMemory:
    """Memory of one device during a pass between the steps or before them, in bytes."""

    peak: int
    """Peak bytes, whatever else is live included."""
    refused: bool = False
    """Whether the compiler refused the pass; ``peak`` is then a lower bound."""


@dataclass(frozen=True)
class Memory:
    """Memory of one device, in bytes."""

    parameters: int
    """Trained and frozen parameters."""
    optimizer: int
    batch: int
    arguments: int
    """All of the above in the compiler's layout, padding included."""
    temporaries: int
    """Gradients, activations, gathered weights: memory that the compiler allocates."""
    code: int
    peak: int
    """The most at once, arguments included."""
    available: int
    """Memory of the chip; the runtime reserves a part of it."""
    loading: PassMemory | None = None
    """Reading the base weights of a LoRA run, in float32, before the first step."""
    reference: PassMemory | None = None
    """The reference pass over preferences before the first step, if there is one."""
    evaluation: PassMemory | None = None
    """The pass over held-out text, the optimizer's moments included, if there is one."""

    @property
    def left(self) -> int:
        """Memory of the chip that no program of the run needs; negative if the run does not fit."""
        return self.available - max([self.peak + self.code, *(one.peak for one in self._passes)])

    @property
    def fits(self) -> bool:
        """Whether the run fits the chip's memory."""
        return self.left >= 0 and not any(one.refused for one in self._passes)

    @property
    def fits_but_for_evaluation(self) -> bool:
        """Whether only the pass over held-out text does not fit."""
        return not self.fits and replace(self, evaluation=None).fits

    @property
    def _passes(self) -> list[PassMemory]:
        return [one for one in (self.loading, self.reference, self.evaluation) if one]


@dataclass(frozen=True)
class Throughput:
    """Throughput of the steps at one utilization of the chips."""

    mfu: float
    tokens_per_day: float
    days: float
    """Days for all tokens of the run."""
    chip_hours: float


@dataclass(frozen=True)
class Plan:
    """The plan of one config on one topology."""

    topology: Topology
    mesh: dict[str, int]
    remat: str
    work: Workload
    memory: Memory
    program: ProgramFigures
    peak_breakdown: PeakBreakdown
    """The arrays at the program's peak, by purpose."""
    roofline: Roofline

    @property
    def model_flops(self) -> float:
        """Model FLOPs of one device per step, recomputation not included."""
        return self.work.tokens_per_step * self.work.flops_per_token / self.topology.devices

    @property
    def mfu_serial(self) -> float:
        """Model FLOPs utilization (MFU) if nothing overlaps."""
        return self.model_flops / self.topology.chip.peak_flops / self.roofline.serial_seconds

    @property
    def mfu_overlapped(self) -> float:
        """Upper bound on the MFU by the roofline: everything overlaps."""
        return self.model_flops / self.topology.chip.peak_flops / self.roofline.overlapped_seconds

    @property
    def throughputs(self) -> list[Throughput]:
        """Throughput at each MFU of ``MFU_RANGE``, or at the roofline's bound if that is lower.

        The range was measured with bfloat16 products; the time that 8-bit products save is
        subtracted from the time of a step.
        """
        chip, matrix = self.topology.chip, self.program.matrix
        saved = (matrix.total - matrix.as_bfloat16(chip)) / chip.peak_flops
        least = self.model_flops / chip.peak_flops
        seconds = {max(least / mfu - saved, self.roofline.overlapped_seconds) for mfu in MFU_RANGE}
        return [self._throughput(one) for one in sorted(seconds, reverse=True)]

    def _throughput(self, seconds: float) -> Throughput:
        """Return the throughput of steps of ``seconds`` each."""
        mfu = self.model_flops / self.topology.chip.peak_flops / seconds
        steps = 86400 / seconds
        days = self.work.tokens / self.work.tokens_per_step / steps
        return Throughput(
            mfu, self.work.tokens_per_step * steps, days, days * 24 * self.topology.chips
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, as ``plan --json`` prints it."""
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
            "paces": [asdict(one) for one in self.throughputs],
        }


def describe_target(topology: Topology, mesh: dict[str, int]) -> dict[str, Any]:
    """Return the chips and the mesh of a plan as JSON values."""
    return {
        "topology": topology.text,
        "name": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "devices": topology.devices,
        "mesh": mesh,
    }


def workload(config: TrainConfig, rows: int) -> Workload:
    """Return the workload of ``config`` with ``rows`` rows per device and micro-batch."""
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
    """Return the plan of a compiled step with the abstract arguments ``state`` and ``batch``."""
    # Every array of a batch has shape (micro-batches, rows, ...).
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
    """Return the memory of a compiled step with abstract arguments ``state`` and ``batch``."""
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
    """Return the bytes of a tree of arrays, or of shapes with shardings, on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def largest_buffers(live: Peak, most: int) -> list[tuple[int, int, str, str]]:
    """Return the ``most`` largest groups of equal arrays: (bytes, count, shape, origin)."""
    counted = Counter((str(one.shape), one.origin, one.bytes) for one in live.buffers)
    rows = [(size * n, n, shape, origin) for (shape, origin, size), n in counted.items()]
    return sorted(rows, reverse=True)[:most]
