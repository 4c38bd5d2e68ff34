"""Meshes, remat policies and micro-batches that could serve a config on a topology."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
import itertools
import math

from llama_cpt.config.schema import MeshConfig, TrainConfig
from llama_cpt.hardware.topologies import Topology, shapes_of
from llama_cpt.model.quantized import MOST_TOKENS
from llama_cpt.planning.analytic import AnalyticMemory, analytic_memory, analytic_seconds
from llama_cpt.planning.step_plan import Memory

# Each remat policy, and those that are sure to keep no more.
REMATS = {
    "none": ("none", "dots", "minimal", "full", "offload"),
    "dots": ("dots", "full"),
    "minimal": ("minimal", "full"),
    "full": ("full",),
    "offload": ("offload",),
}
TENSORS = (1, 2, 4, 8)
CONTEXTS = (1, 2, 4, 8, 16)
# Of a row that several devices share, each takes at least so many tokens.
CONTEXT_TOKENS = 8192
# Where nothing fits yet, what is expected to need so much of the memory is compiled all the same.
DOUBT = 1.25
HELD = "parameters, moments and gradients"


@dataclass(frozen=True)
class Candidate:
    """A config with its mesh, remat policy and micro-batch set, and the batch of evaluation."""

    config: TrainConfig
    mesh: dict[str, int]
    analytic: AnalyticMemory
    """Bytes of one device: at least."""
    seconds: float
    """Of a step, by hand."""
    fitted: bool
    """Whether the config's own ``evaluation.batch_size`` is more than a micro-batch, or not
    divided by the mesh."""

    @property
    def options(self) -> str:
        """As ``train`` takes them."""
        mesh, config = self.config.mesh, self.config
        fitted = f" --evaluation.batch-size {config.evaluation.batch_size}" if self.fitted else ""
        return (
            f"--mesh.replica {mesh.replica} --mesh.fsdp {mesh.fsdp} --mesh.context {mesh.context} "
            f"--mesh.tensor {mesh.tensor} --compute.remat {config.compute.remat} "
            f"--microbatch-size {config.microbatch_size}{fitted}"
        )


@dataclass(frozen=True)
class CompiledCandidate:
    """A candidate that was compiled."""

    candidate: Candidate
    used: int
    """Bytes of one device that it asked for."""
    fits: bool


def candidates(config: TrainConfig, topology: Topology) -> list[Candidate]:
    """All that the mesh divides, what is likely to be fastest first, whether or not it fits."""
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
    """What hinders where there are no ``candidates``: the model, or the batch."""
    parts = {mesh["replica"] * mesh["fsdp"] for mesh in _meshes(config, topology)}
    if parts:
        counts = ", ".join(map(str, sorted(parts)))
        return (
            f"global_batch_size={config.global_batch_size} must be a multiple of the devices that "
            f"hold rows, here one of {counts}"
        )
    model, chips = config.model, topology.devices // topology.slices
    return (
        f"of {chips} devices of a slice, fsdp must divide model.embed_dim={model.embed_dim}, and "
        f"the rest, tensor ({', '.join(map(str, TENSORS))}), num_heads={model.num_heads}, "
        f"num_kv_heads={model.num_kv_heads}, mlp_dim={model.mlp_dim} and "
        f"vocab_size={model.vocab_size}"
    )


def smallest_topology(config: TrainConfig, topology: Topology) -> str:
    """Of the same family, where the least of all settings fits by hand, in words; empty if none is.

    Where none that does divides ``global_batch_size``, whatever the batch.
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
    """The first of ``left`` that is likely to fit ``available`` bytes.

    None where it is idle to go on: what is left keeps as much as what failed, or is far from
    fitting by what the compiled ones of the same remat policy needed.
    """
    failed = [one.candidate for one in tried if not one.fits]
    enough = available * (DOUBT if len(failed) == len(tried) else 1)
    still = [(expected_bytes(one, tried), one) for one in left if may_fit(one, failed)]
    likely = [one for needs, one in still if needs < available]
    if likely:
        return likely[0]
    needs, least = min(still, key=lambda pair: pair[0], default=(math.inf, None))
    return least if needs < enough else None


def may_fit(one: Candidate, failed: list[Candidate]) -> bool:
    """Whether no other failed on the same mesh that kept no more, of no more rows at a time."""
    return not any(
        one.mesh == other.mesh
        and other.config.compute.remat in REMATS[one.config.compute.remat]
        and one.config.microbatch_size >= other.config.microbatch_size
        for other in failed
    )


def expected_bytes(one: Candidate, tried: list[CompiledCandidate]) -> float:
    """Bytes of one device: by hand, and what others of the same remat policy needed beside that.

    Of what keeps less, so much less.
    """
    beside = [0.0]
    for other in tried:
        hand = other.candidate.analytic
        if other.candidate.config.compute.remat == one.config.compute.remat:
            share = min(1.0, one.analytic.saved / hand.saved) if hand.saved else 1.0
            beside.append(share * (other.used - hand.total))
    return one.analytic.total + max(beside)


def first_remedy(
    config: TrainConfig,
    topology: Topology,
    mesh: Mapping[str, int],
    memory: Memory | None = None,
) -> str:
    """The first change to try, as an option of the command line where it is one.

    ``memory`` is None where the compiler refused the step.
    """
    microbatch = config.microbatch_rows
    if memory and memory.fits_but_for_evaluation and config.evaluation.batch_size > microbatch:
        return f"--evaluation.batch-size {microbatch}: as many rows as a step has at a time"
    available, alone = topology.chip.memory_bytes, analytic_memory(config, mesh).alone
    if alone > available:
        copies = mesh.get("replica", 1) // topology.slices
        if copies > 1 and alone / copies <= available:
            return (
                f"--mesh.replica {topology.slices} --mesh.fsdp {mesh['fsdp'] * copies}: one copy "
                f"of the parameters on a slice, not {copies}"
            )
        larger = smallest_topology(config, topology)
        told = f": {larger} at least" if larger else " than one slice has"
        return (
            f"more chips{told}; {'weights as they are read' if config.lora else HELD} alone take "
            f"{alone / 1e9:.1f} GB of {available / 1e9:.1f}"
        )
    if config.compute.remat not in ("full", "offload"):
        return "--compute.remat full: the backward pass recomputes all but the layers' inputs"
    parts = math.prod(size for axis, size in mesh.items() if axis not in ("tensor", "context"))
    rows = microbatch // parts
    fewer = [
        count
        for count in range(1, rows // 2 + 1)
        if rows % count == 0 and count * parts >= config.min_microbatch_rows
    ]
    if fewer:
        return f"--microbatch-size {fewer[-1] * parts}: {fewer[-1]} rows a device at a time"
    return "--search: another mesh (mesh.tensor) or compute.remat=offload; else more chips"


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
            asked = math.ceil(config.evaluation.batch_size / parts) * parts
            evaluated = min(asked, microbatch)
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
    model, slices = config.model, topology.slices
    heads = (model.num_heads, model.num_kv_heads, model.mlp_dim, model.vocab_size)
    for tensor, context in itertools.product(TENSORS, _contexts(config)):
        fsdp, rest = divmod(topology.devices // slices, tensor * context)
        if not fsdp or rest or any(size % tensor for size in heads):
            continue
        if model.embed_dim % (fsdp * context) == 0:
            yield {"replica": slices, "fsdp": fsdp, "context": context, "tensor": tensor}


def _contexts(config: TrainConfig) -> Iterator[int]:
    """Devices that may share a row; splash and cudnn take whole ones."""
    shared = config.compute.attention not in ("splash", "cudnn")
    most = config.data.sequence_length // CONTEXT_TOKENS if shared else 1
    for context in CONTEXTS:
        if context == 1 or context <= most and config.data.sequence_length % (256 * context) == 0:
            yield context


def _microbatches(rows: int, parts: int) -> Iterator[int]:
    """Parts of ``rows`` that a mesh of ``parts`` divides: 1, 2, 4... rows a device."""
    microbatch = parts
    while microbatch <= rows:
        if rows % microbatch == 0:
            yield microbatch
        microbatch *= 2
