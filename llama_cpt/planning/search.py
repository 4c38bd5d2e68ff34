"""Search for a mesh, remat policy and micro-batch size with which a config fits a topology."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
import itertools
import math

from llama_cpt.config.schema import MeshConfig, TrainConfig
from llama_cpt.hardware.topologies import Topology, shapes_of
from llama_cpt.model.linear import MOST_TOKENS
from llama_cpt.planning.analytic import AnalyticMemory, analytic_memory, analytic_seconds
from llama_cpt.planning.step_plan import Memory

# For each remat policy, the policies that never save more activations than it does.
REMATS = {
    "none": ("none", "dots", "minimal", "full", "offload"),
    "dots": ("dots", "full"),
    "minimal": ("minimal", "full"),
    "full": ("full",),
    "offload": ("offload",),
}
# Sizes of the mesh axes ``tensor`` and ``context`` that the search tries.
TENSORS = (1, 2, 4, 8)
CONTEXTS = (1, 2, 4, 8, 16)
# Minimum number of tokens of a row per device if the row is sharded over several devices.
CONTEXT_TOKENS = 8192
# Until a setting fits, the search also compiles settings whose expected memory exceeds the chip's
# memory by up to this factor, because the expected memory can be too high.
DOUBT = 1.25
HELD = "parameters, moments and gradients"


@dataclass(frozen=True)
class Candidate:
    """A setting of the search: a config with one choice of mesh, remat policy and batch sizes."""

    config: TrainConfig
    mesh: dict[str, int]
    analytic: AnalyticMemory
    """Lower bound on the memory of one device."""
    seconds: float
    """Estimate of the seconds per step (``analytic_seconds``)."""
    fitted: bool
    """True if the search changed ``evaluation.batch_size``, because the batch size was not a
    multiple of ``replica`` x ``fsdp`` or exceeded the micro-batch size."""

    @property
    def options(self) -> str:
        """The setting as command-line options of ``train``."""
        mesh, config = self.config.mesh, self.config
        batch = f" --evaluation.batch-size {config.evaluation.batch_size}" if self.fitted else ""
        return (
            f"--mesh.replica {mesh.replica} --mesh.fsdp {mesh.fsdp} --mesh.context {mesh.context} "
            f"--mesh.tensor {mesh.tensor} --compute.remat {config.compute.remat} "
            f"--microbatch-size {config.microbatch_size}{batch}"
        )


@dataclass(frozen=True)
class CompiledCandidate:
    """The memory of a compiled candidate."""

    candidate: Candidate
    used: int
    """Bytes that the run needs per device."""
    fits: bool


def candidates(config: TrainConfig, topology: Topology) -> list[Candidate]:
    """Return every setting whose mesh axes divide the model's sizes and the batch sizes.

    The settings are sorted from the shortest to the longest estimated time per step. They include
    settings that do not fit the chip's memory.
    """
    found = [
        Candidate(
            one,
            mesh,
            analytic_memory(one, mesh),
            analytic_seconds(one, mesh, topology.chip),
            fitted=one.evaluation != config.evaluation,
        )
        for one, mesh in _settings(config, topology)
    ]
    return sorted(found, key=lambda one: (one.seconds, one.analytic.total))


def explain_no_candidates(config: TrainConfig, topology: Topology) -> str:
    """Return a phrase that states why ``candidates`` returned nothing.

    Either no mesh divides the model's sizes, or no mesh that divides them has a number of row
    shards, ``replica`` x ``fsdp``, that divides ``global_batch_size``.
    """
    parts = {mesh["replica"] * mesh["fsdp"] for mesh in _meshes(config, topology)}
    if parts:
        counts = ", ".join(map(str, sorted(parts)))
        return (
            f"global_batch_size={config.global_batch_size} must be a multiple of the devices that "
            f"hold rows, here one of {counts}"
        )
    model, chips = config.architecture, topology.devices // topology.slices
    return (
        f"of {chips} devices of a slice, fsdp must divide model.embed_dim={model.embed_dim}, and "
        f"the rest, tensor ({', '.join(map(str, TENSORS))}), num_heads={model.num_heads}, "
        f"num_kv_heads={model.num_kv_heads}, mlp_dim={model.mlp_dim} and "
        f"vocab_size={model.vocab_size}"
    )


def smallest_topology(config: TrainConfig, topology: Topology) -> str:
    """Return a phrase that names the smallest slice with enough memory.

    Only slices of the same chip family and with more chips than ``topology`` are considered. A
    slice has enough memory if the chip's memory exceeds the analytic estimate for one of the
    slice's meshes with remat ``offload``. Slices with a mesh whose ``replica`` x ``fsdp`` divides
    ``global_batch_size`` take precedence. If no such slice exists, the phrase also states a number
    that must divide the batch size. Returns an empty string if no slice has enough memory.
    """
    compute = replace(config.compute, remat="offload")
    larger = [
        (one, mesh["replica"] * mesh["fsdp"])
        for shape in shapes_of(topology.family)
        if (one := Topology(topology.family, shape, topology.slices)).chips > topology.chips
        for mesh in _meshes(config, one)
        if analytic_memory(replace(config, compute=compute), mesh).total < one.chip.memory_bytes
    ]
    divided = [one for one, parts in larger if config.global_batch_size % parts == 0]
    if not larger:
        return ""
    one = divided[0] if divided else larger[0][0]
    parts = min(parts for other, parts in larger if other == one)
    batch = "" if divided else f" with a global_batch_size that {parts} divides"
    return f"{one.text} ({one.name}){batch}"


def next_to_try(
    left: list[Candidate], tried: list[CompiledCandidate], available: int
) -> Candidate | None:
    """Return the candidate in ``left`` to compile next, given the results in ``tried``.

    The result is the first candidate that is expected to fit ``available`` bytes. If there is no
    such candidate and nothing in ``tried`` fits, the result is the candidate with the smallest
    expected memory, provided that this memory is less than ``DOUBT * available``. Otherwise the
    result is None, and the search stops.
    """
    failed = [one.candidate for one in tried if not one.fits]
    limit = available * (DOUBT if len(failed) == len(tried) else 1)
    remaining = [(expected_bytes(one, tried), one) for one in left if may_fit(one, failed)]
    likely = [one for needs, one in remaining if needs < available]
    if likely:
        return likely[0]
    needs, smallest = min(remaining, key=lambda pair: pair[0], default=(math.inf, None))
    return smallest if needs < limit else None


def may_fit(one: Candidate, failed: list[Candidate]) -> bool:
    """Return whether ``one`` can fit, given that the settings in ``failed`` do not fit.

    Returns False if ``failed`` contains a setting that has the same mesh as ``one`` and needs at
    most as much memory as ``one``.
    """
    return not any(
        one.mesh == other.mesh
        and other.config.compute.remat in REMATS[one.config.compute.remat]
        and one.config.microbatch_size >= other.config.microbatch_size
        for other in failed
    )


def expected_bytes(one: Candidate, tried: list[CompiledCandidate]) -> float:
    """Return the bytes per device that candidate ``one`` is expected to need.

    The result is the analytic memory plus a correction. The correction is the largest excess of the
    compiled memory over the analytic memory among the compiled settings with the same remat policy.
    The excess grows with the saved activations, so it is scaled down for a candidate that saves
    fewer activations.
    """
    excess = [0.0]
    for other in tried:
        analytic = other.candidate.analytic
        if other.candidate.config.compute.remat == one.config.compute.remat:
            share = min(1.0, one.analytic.saved / analytic.saved) if analytic.saved else 1.0
            excess.append(share * (other.used - analytic.total))
    return one.analytic.total + max(excess)


def first_remedy(
    config: TrainConfig,
    topology: Topology,
    mesh: Mapping[str, int],
    memory: Memory | None = None,
) -> str:
    """Return a phrase with the first change to try if a run does not fit.

    The phrase begins with a command-line option, unless more chips are required. ``memory`` is None
    if the compiler rejected the step.
    """
    microbatch = config.microbatch_rows
    if memory and memory.fits_but_for_evaluation and config.evaluation.batch_size > microbatch:
        return f"--evaluation.batch-size {microbatch}: as many rows as a micro-batch of a step"
    available, alone = topology.chip.memory_bytes, analytic_memory(config, mesh).alone
    if alone > available:
        copies = mesh.get("replica", 1) // topology.slices
        if copies > 1 and alone / copies <= available:
            return (
                f"--mesh.replica {topology.slices} --mesh.fsdp {mesh['fsdp'] * copies}: one copy "
                f"of the parameters on a slice, not {copies}"
            )
        larger = smallest_topology(config, topology)
        phrase = f": {larger} at least" if larger else " than one slice has"
        return (
            f"more chips{phrase}; {'weights as they are read' if config.lora else HELD} alone take "
            f"{alone / 1e9:.1f} GB per device of {available / 1e9:.1f} GB"
        )
    if config.compute.remat not in ("full", "offload"):
        return "--compute.remat full: the backward pass recomputes all but the layers' inputs"
    parts = math.prod(size for axis, size in mesh.items() if axis not in ("tensor", "context"))
    rows = microbatch // parts
    smaller = [
        count
        for count in range(1, rows // 2 + 1)
        if rows % count == 0 and count * parts >= config.min_microbatch_rows
    ]
    if smaller:
        return f"--microbatch-size {smaller[-1] * parts}: {smaller[-1]} rows per device at a time"
    return "--search: tries values of mesh.tensor and compute.remat=offload; otherwise, more chips"


def _settings(
    config: TrainConfig, topology: Topology
) -> Iterator[tuple[TrainConfig, dict[str, int]]]:
    for mesh in _meshes(config, topology):
        parts = mesh["replica"] * mesh["fsdp"]
        for microbatch in _microbatches(config.global_batch_size, parts):
            tokens = microbatch // parts * config.data.sequence_length // mesh["context"]
            if config.compute.matmul_precision == "int8" and tokens > MOST_TOKENS:
                continue
            if microbatch < config.min_microbatch_rows:
                continue
            rounded = math.ceil(config.evaluation.batch_size / parts) * parts
            evaluated = min(rounded, microbatch)
            for remat in REMATS:
                yield (
                    replace(
                        config,
                        mesh=MeshConfig(**mesh),
                        microbatch_size=microbatch,
                        compute=replace(config.compute, remat=remat),
                        evaluation=replace(config.evaluation, batch_size=evaluated),
                    ),
                    mesh,
                )


def _meshes(config: TrainConfig, topology: Topology) -> Iterator[dict[str, int]]:
    model, slices = config.architecture, topology.slices
    heads = (model.num_heads, model.num_kv_heads, model.mlp_dim, model.vocab_size)
    for tensor, context in itertools.product(TENSORS, _contexts(config)):
        fsdp, rest = divmod(topology.devices // slices, tensor * context)
        if not fsdp or rest or any(size % tensor for size in heads):
            continue
        if model.embed_dim % (fsdp * context) == 0:
            yield {"replica": slices, "fsdp": fsdp, "context": context, "tensor": tensor}


def _contexts(config: TrainConfig) -> Iterator[int]:
    """Yield the sizes of the ``context`` axis that the attention and the row length allow.

    The attention implementations ``splash`` and ``cudnn`` need whole rows and allow only size 1.
    """
    can_share = config.compute.attention not in ("splash", "cudnn")
    most = config.data.sequence_length // CONTEXT_TOKENS if can_share else 1
    for context in CONTEXTS:
        if context == 1 or context <= most and config.data.sequence_length % (256 * context) == 0:
            yield context


def _microbatches(rows: int, parts: int) -> Iterator[int]:
    """Yield the micro-batch sizes that divide ``rows`` and are 1, 2, 4, ... times ``parts``."""
    microbatch = parts
    while microbatch <= rows:
        if rows % microbatch == 0:
            yield microbatch
        microbatch *= 2
