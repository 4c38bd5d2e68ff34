"""The command that plans a run: ``python -m llama_cpt.plan CONFIG --topology v5p:4x4x8``."""

import argparse
from dataclasses import asdict, replace
import json
import logging
import sys

import jax
from jax.sharding import Mesh

from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.hardware.topologies import Topology, find_topology
from llama_cpt.planning import compiling
from llama_cpt.planning.compiling import OutOfMemory
from llama_cpt.planning.search import (
    Candidate,
    CompiledCandidate,
    candidates,
    explain_no_candidates,
    first_remedy,
    next_to_try,
    smallest_topology,
)
from llama_cpt.planning.step_plan import PassMemory, Plan, describe_target, device_bytes, make_plan
from llama_cpt.planning.text import format_plan, format_refusal, format_search, format_trial
from llama_cpt.runtime.errors import NEGATIVE_RESULT, UserError, one_line_errors
from llama_cpt.training.lowering import (
    abstract_batch,
    lower_evaluation,
    lower_program,
    lower_reference,
    topology_program,
)
from llama_cpt.training.program import TrainProgram, needs_reference
from llama_cpt.weights.initial_model import with_model

logger = logging.getLogger(__name__)

DESCRIPTION = """Compile the step that train runs, with the TPU compiler and without a TPU, and
print its requirements: memory and the largest arrays, FLOPs, collectives, a lower bound on the
time, tokens per day and chip-hours."""
EPILOG = """examples:
  python -m llama_cpt.plan configs/llama3/cpt_70b.py --topology v5p:4x4x8
  python -m llama_cpt.plan configs/llama3/cpt_8b.py --topology v5e-32 --compute.remat minimal
  python -m llama_cpt.plan configs/llama3/cpt_8b.py --topology v6e-16 --search

Every field of the config is an option, as for train. docs/guide/plan.md explains each line.
Exit status: 0 fits, 3 does not fit, 78 the config is wrong, 2 an option is wrong.
"""
ENOUGH_FOUND = 5
"""Number of fitting settings after which a search stops."""


class DoesNotFitError(UserError):
    """Error for a search in which no setting fits the chip's memory."""

    status = NEGATIVE_RESULT


def main(arguments: list[str]) -> int:
    """Print the plan of the config named in ``arguments`` and return the exit status."""
    options, overrides = _parser().parse_known_args(arguments)
    topology = find_topology(options.topology, options.slices)
    config = load_config(options.config, overrides)
    # Ahead-of-time compilation needs no TPU. Without this, JAX would wait for a TPU, or take a TPU
    # that another process uses.
    jax.config.update("jax_platforms", "cpu")
    # Without a TPU, JAX cannot load a TPU program from the compilation cache.
    jax.config.update("jax_enable_compilation_cache", False)
    config = with_model(config)
    if options.search:
        return _search(config, topology, options.json)
    program = topology_program(config, topology.text, topology.slices)
    plan = compiled_plan(config, topology, program)
    mesh = dict(program.mesh.shape)
    memory = plan.memory if isinstance(plan, Plan) else None
    fits = memory is not None and memory.fits
    remedy = "" if fits else first_remedy(config, topology, mesh, memory)
    if options.json:
        facts = (
            plan.to_json()
            if isinstance(plan, Plan)
            else {**describe_target(topology, mesh), **asdict(plan)}
        )
        print(json.dumps({"fits": fits, "first_to_try": remedy, **facts}, indent=1))
    elif isinstance(plan, OutOfMemory):
        print(format_refusal(plan, topology, remedy))
    else:
        print(format_plan(plan, remedy))
    return 0 if fits else NEGATIVE_RESULT


def compiled_plan(
    config: TrainConfig, topology: Topology, program: TrainProgram
) -> Plan | OutOfMemory:
    """Compile the step in ``program`` for ``topology`` and return its plan.

    The plan includes the memory of work outside the steps: loading the base weights of a LoRA run,
    reference log-probabilities and held-out evaluation. Returns OutOfMemory if the compiler reports
    that the step does not fit.
    """
    mesh = program.mesh
    compiled = compiling.compile_program(lower_program(config, program), mesh)
    if isinstance(compiled, OutOfMemory):
        return compiled
    batch = abstract_batch(config, mesh)
    plan = make_plan(config, topology, compiled, state=program.state_shapes, batch=batch)
    memory = plan.memory
    if config.lora:
        memory = replace(memory, loading=PassMemory(device_bytes(program.base_model_shapes)))
    if needs_reference(config):
        memory = replace(memory, reference=_pass_memory(lower_reference(config, program), mesh))
    if config.data.heldout:
        moments = device_bytes(program.state_shapes.opt_state)
        evaluation = _pass_memory(lower_evaluation(config, program), mesh, live=moments)
        memory = replace(memory, evaluation=evaluation)
    return replace(plan, memory=memory)


def _pass_memory(lowered: jax.stages.Lowered, mesh: Mesh, live: int = 0) -> PassMemory:
    """Compile a program and return its memory plus ``live``, the bytes of all other arrays."""
    compiled = compiling.compile_program(lowered, mesh)
    if isinstance(compiled, OutOfMemory):
        return PassMemory(compiled.used + live, refused=True)
    return PassMemory(compiled.peak + live)


def bytes_needed(plan: Plan | OutOfMemory) -> int:
    """Return the bytes that one device needs for the steps and for the work outside the steps."""
    return plan.used if isinstance(plan, OutOfMemory) else plan.memory.available - plan.memory.left


def _search(config: TrainConfig, topology: Topology, as_json: bool) -> int:
    available = topology.chip.memory_bytes
    every = candidates(config, topology)
    left = [one for one in every if one.analytic.total < available]
    found: list[tuple[Candidate, Plan]] = []
    tried: list[CompiledCandidate] = []
    while len(found) < ENOUGH_FOUND and (one := next_to_try(left, tried, available)):
        left.remove(one)
        program = topology_program(one.config, topology.text, topology.slices)
        plan = compiled_plan(one.config, topology, program)
        fitting = plan if isinstance(plan, Plan) and plan.memory.fits else None
        if fitting:
            found.append((one, fitting))
        tried.append(CompiledCandidate(one, bytes_needed(plan), fitting is not None))
        logger.info(format_trial(tried[-1]))
    if not found:
        if as_json:
            print("[]")
        raise _nothing_fits(config, topology, every)
    found.sort(key=lambda pair: pair[1].roofline.serial_seconds)
    if as_json:
        plans = [{"fits": True, "options": one.options, **plan.to_json()} for one, plan in found]
        print(json.dumps(plans, indent=1))
    else:
        print(format_search(found, len(tried), topology))
    return 0


def _nothing_fits(config: TrainConfig, topology: Topology, every: list[Candidate]) -> UserError:
    if not every:
        reason = explain_no_candidates(config, topology)
        return UserError(f"{topology.text}: no mesh fits both the slice and the config: {reason}.")
    least = min(every, key=lambda one: one.analytic.total)
    larger = smallest_topology(config, topology)
    # More slices do not help, because each slice has a copy of the parameters.
    remedy = (
        f"the smallest slice that may fit is {larger}"
        if larger
        else f"no slice of {topology.family} suffices: use LoRA (docs/guide/lora.md) or other chips"
    )
    available = topology.chip.memory_bytes
    compiled = ", and more when compiled" if least.analytic.total < available else ""
    return DoesNotFitError(
        f"{topology.text}: no mesh, remat policy or micro-batch fits; the smallest needs at least "
        f"{least.analytic.total / 1e9:.1f} GB per device of {available / 1e9:.1f} GB{compiled} "
        f"({least.options}); {remedy}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.plan",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", help="a Python config, or a run's config.json")
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="v5p:4x4x8, or v5p-256, v5e-32, v6e-64"
    )
    parser.add_argument(
        "--slices", type=int, default=1, help="slices joined by the data-center network (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--search",
        action="store_true",
        help=f"try meshes, remat policies and micro-batches until {ENOUGH_FOUND} settings fit",
    )
    return parser


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
