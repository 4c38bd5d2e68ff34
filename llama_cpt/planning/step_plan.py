"""The plan of a training run: memory, cost of the compiled step, roofline and throughput."""

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
    """The amount of work in a run, computed from its config."""

    tokens_per_step: int
    tokens: int
    """Tokens of the whole run."""
    flops_per_token: float
    """Analytic FLOPs per token, as returned by ``model_flops_per_token``."""
    per_weight: int
    """FLOPs per token and weight of a matrix product: 6, or 4 if the weights are frozen (LoRA)."""
    rows: int
    """Rows per device and micro-batch."""
    num_microbatches: int
    sequence_length: int


@dataclass(frozen=True)
class PassMemory:
    """Memory, in bytes per device, while a program other than the train step runs."""

    peak: int
    """Peak bytes, including arrays that are live but not used by the program."""
    refused: bool = False
    """True if the compiler rejected the program because it needs too much memory. ``peak`` is then
    a lower bound."""


@dataclass(frozen=True)
class Memory:
    """Memory of a run in bytes per device."""

    parameters: int
    """Bytes of the trained and the frozen parameters."""
    optimizer: int
    """Bytes of the optimizer state."""
    batch: int
    arguments: int
    """Bytes of parameters, optimizer state and batch together, padded to the compiler's layouts."""
    temporaries: int
    """Bytes that the step allocates for gradients, activations and gathered weights."""
    code: int
    """Bytes of the compiled program itself."""
    peak: int
    """Peak bytes of the step, including the arguments and without ``code``."""
    available: int
    """Bytes of the chip's memory, including the part that the runtime reserves."""
    loading: PassMemory | None = None
    """Memory while the float32 base weights of a LoRA run are read, before the first step. None
    without LoRA."""
    reference: PassMemory | None = None
    """Memory of the reference model's forward pass over the preference data, before the first step.
    None if the loss needs no reference model."""
    evaluation: PassMemory | None = None
    """Memory of a held-out evaluation, including the optimizer state, which stays in memory. None
    if the config has no held-out data."""

    @property
    def left(self) -> int:
        """Bytes of the chip's memory that remain free at the peak of the run.

        A negative value means that the memory is too small by this number of bytes.
        """
        return self.available - max([self.peak + self.code, *(one.peak for one in self._passes)])

    @property
    def fits(self) -> bool:
        """Whether the step and all other programs of the run fit the chip's memory."""
        return self.left >= 0 and not any(one.refused for one in self._passes)

    @property
    def fits_but_for_evaluation(self) -> bool:
        """Whether held-out evaluation is the only program of the run that does not fit."""
        return not self.fits and replace(self, evaluation=None).fits

    @property
    def _passes(self) -> list[PassMemory]:
        return [one for one in (self.loading, self.reference, self.evaluation) if one]


@dataclass(frozen=True)
class Throughput:
    """The throughput of training at one value of the model FLOPs utilization (MFU)."""

    mfu: float
    tokens_per_day: float
    days: float
    """Days that the steps of the run take."""
    chip_hours: float
    """Hours of the run, times the number of chips."""


@dataclass(frozen=True)
class Plan:
    """The predicted memory and speed of a config's training step on a TPU topology."""

    topology: Topology
    mesh: dict[str, int]
    remat: str
    work: Workload
    memory: Memory
    program: ProgramFigures
    peak_breakdown: PeakBreakdown
    """Bytes of the arrays that are live at the step's peak, by purpose."""
    roofline: Roofline

    @property
    def model_flops(self) -> float:
        """Analytic FLOPs per device and step, without recomputation."""
        return self.work.tokens_per_step * self.work.flops_per_token / self.topology.devices

    @property
    def mfu_serial(self) -> float:
        """Model FLOPs utilization (MFU) if only one resource works at a time."""
        return self.model_flops / self.topology.chip.peak_flops / self.roofline.serial_seconds

    @property
    def mfu_overlapped(self) -> float:
        """Model FLOPs utilization (MFU) if all resources work in parallel: an upper bound."""
        return self.model_flops / self.topology.chip.peak_flops / self.roofline.overlapped_seconds

    @property
    def throughputs(self) -> list[Throughput]:
        """Throughput at each MFU of ``MFU_RANGE``, from slow to fast.

        An MFU above the roofline's bound is replaced by the bound. The MFUs of the range are from
        runs with bfloat16 products. If the step has 8-bit products, the time that these products
        save on the matrix units is subtracted from the step time.
        """
        chip, matrix = self.topology.chip, self.program.matrix
        saved = (matrix.total - matrix.as_bfloat16(chip)) / chip.peak_flops
        least = self.model_flops / chip.peak_flops
        seconds = {max(least / mfu - saved, self.roofline.overlapped_seconds) for mfu in MFU_RANGE}
        return [self._throughput(one) for one in sorted(seconds, reverse=True)]

    def _throughput(self, seconds: float) -> Throughput:
        """Return the throughput if each step takes ``seconds``."""
        mfu = self.model_flops / self.topology.chip.peak_flops / seconds
        steps = 86400 / seconds
        days = self.work.tokens / self.work.tokens_per_step / steps
        return Throughput(
            mfu, self.work.tokens_per_step * steps, days, days * 24 * self.topology.chips
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object, as ``plan --json`` prints it."""
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
    """Return the topology and the mesh of a plan as a JSON object."""
    return {
        "topology": topology.text,
        "name": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "devices": topology.devices,
        "mesh": mesh,
    }


def workload(config: TrainConfig, rows: int) -> Workload:
    """Return the workload of ``config`` if each device computes ``rows`` rows per micro-batch."""
    length = config.data.sequence_length
    tokens = config.global_batch_size * length
    frozen = config.lora is not None
    flops = model_flops_per_token(config.architecture, length, frozen=frozen)
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
    """Return the plan of a compiled step.

    ``state`` and ``batch`` are the arguments of the step, as ShapeDtypeStructs with shardings. The
    plan does not include the memory of programs other than the step.
    """
    # Every array of a batch has shape (micro-batches, rows, ...), so the first one is used.
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
            layers=config.architecture.num_layers,
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
    """Return the memory of a compiled step.

    ``state`` and ``batch`` are the arguments of the step, as ShapeDtypeStructs with shardings.
    ``available`` is the chip's memory in bytes.
    """
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
    """Return the bytes per device of a pytree of arrays or ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def largest_buffers(live: Peak, most: int) -> list[tuple[int, int, str, str]]:
    """Return up to ``most`` groups of arrays, largest first, as (bytes, count, shape, origin).

    The arrays of a group have the same shape, size in bytes and origin. ``bytes`` is the total of
    the group.
    """
    counted = Counter((str(one.shape), one.origin, one.bytes) for one in live.buffers)
    rows = [(size * n, n, shape, origin) for (shape, origin, size), n in counted.items()]
    return sorted(rows, reverse=True)[:most]
