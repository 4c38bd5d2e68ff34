"""A plan in words and tables."""

from collections.abc import Iterator
import math

from llama_cpt.hardware.topologies import Topology
from llama_cpt.planning.buffers import Peak, PeakBreakdown
from llama_cpt.planning.compiling import OutOfMemory, ProgramFigures
from llama_cpt.planning.search import Candidate, CompiledCandidate
from llama_cpt.planning.step_plan import Memory, Plan, largest_buffers

GB = 1e9
SHOWN_ARRAYS = 6


def format_plan(plan: Plan, remedy: str) -> str:
    """Several lines, without an end; ``remedy`` is told where the step does not fit."""
    arrays = _arrays(plan.memory, plan.program.live, plan.peak_breakdown)
    traffic = _traffic(plan.program)
    told = (_title(plan), _memory(plan, remedy), arrays, _work(plan), traffic, _time(plan))
    return "\n\n".join("\n".join(part) for part in told)


def format_refusal(refused: OutOfMemory, topology: Topology, remedy: str) -> str:
    """A step that the compiler refuses: it does not fit."""
    lines = [
        f"{_slices(topology)}: does not fit",
        f"  {refused.used / GB:.2f} GB a device of {refused.available / GB:.2f} that a program may "
        "use; the compiler stops there, so operations and collectives are not known",
        f"  first to try: {remedy}",
    ]
    if refused.arrays:
        lines += ["", "What decides it: the largest arrays that the compiler names, GB"]
    for size, shape, origin in refused.arrays[:SHOWN_ARRAYS]:
        lines.append(f"  {size / GB:9.3f}  {shape}  {_short(origin)}")
    return "\n".join(lines)


def format_trial(tried: CompiledCandidate) -> str:
    """One setting of a search, once it was compiled."""
    told = "fits" if tried.fits else "does not fit"
    return f"{told}: {tried.used / GB:.2f} GB a device; {tried.candidate.options}"


def format_search(found: list[tuple[Candidate, Plan]], tried: int, topology: Topology) -> str:
    """What a search found to fit, the fastest first."""
    lines = [
        f"{_slices(topology)}: {len(found)} of {tried} settings compiled fit, the fastest first",
        "seconds a step by the roofline, all in turn (all at once); peak GB a device; options",
    ]
    for candidate, plan in found:
        line = plan.roofline
        told = f"{line.serial_seconds:8.3f} ({line.overlapped_seconds:.3f}, {line.bound})"
        lines.append(f"  {told}  {plan.memory.peak / GB:6.2f}  {candidate.options}")
    return "\n".join(lines)


def _slices(topology: Topology) -> str:
    several = f"{topology.slices} x " if topology.slices > 1 else ""
    return f"{several}{topology.text} ({topology.name}), {topology.chips:,} chips"


def _title(plan: Plan) -> Iterator[str]:
    work = plan.work
    axes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    yield f"{_slices(plan.topology)}; mesh: {axes or 'one device'}"
    yield (
        f"{work.rows} x {work.sequence_length} tokens a device at a time, micro-batches a step: "
        f"{work.num_microbatches}, remat: {plan.remat}"
    )


def _memory(plan: Plan, remedy: str) -> Iterator[str]:
    memory = plan.memory
    yield "Memory, GB a device"
    for name, size, remark in (
        ("parameters", memory.parameters, ""),
        ("optimizer", memory.optimizer, ""),
        ("batch", memory.batch, ""),
        ("temporaries", memory.temporaries, "gradients, activations, gathered weights"),
        ("code", memory.code, ""),
        ("peak", memory.peak, "the compiler's figure, arguments included"),
    ):
        yield f"  {name:<12}{size / GB:9.3f}  {remark}".rstrip()
    for name, one, remark in (
        ("loading", memory.loading, "the weights as they are read, in float32, before them"),
        ("reference", memory.reference, "peak of the pass that scores the answers before them"),
        ("evaluation", memory.evaluation, "peak of held-out text, the moments beside it"),
    ):
        if one:
            refused = ", at least: the compiler refuses it" if one.refused else ""
            yield f"  {name:<12}{one.peak / GB:9.3f}  {remark}{refused}"
    if memory.fits:
        yield f"  fits: {memory.left / GB:.2f} of {memory.available / GB:.2f} are left"
    else:
        above, chip = -memory.left / GB, memory.available / GB
        told = f"{above:.2f} above" if above > 0 else "the compiler keeps a part of"
        yield f"  does not fit: {told} the chip's {chip:.2f}"
        yield f"  first to try: {remedy}"


def _arrays(memory: Memory, live: Peak, parts: PeakBreakdown) -> Iterator[str]:
    yield "What decides it, GB: arrays alive at the peak beside the arguments, by a walk of the"
    yield (
        f"schedule, whose peak is {(live.bytes + memory.arguments) / GB:.2f}: gradients "
        f"{parts.gradients / GB:.2f}, saved for the backward pass {parts.saved / GB:.2f}, others "
        f"{parts.others / GB:.2f}"
    )
    for size, count, shape, origin in largest_buffers(live, SHOWN_ARRAYS):
        yield f"  {size / GB:9.3f}  {count} x {shape}  {_short(origin)}"


def _short(origin: str) -> str:
    """The end of an operation's path, which names the part of the model."""
    return origin if len(origin) < 60 else "..." + origin[-57:]


def _work(plan: Plan) -> Iterator[str]:
    program, matrix, factor = plan.program, plan.program.matrix, plan.work.per_weight
    ratio = matrix.total / plan.model_flops
    yield "Operations, TFLOP a device a step"
    yield f"  model     {plan.model_flops / 1e12:12.3f}  {factor} N and causal attention, by hand"
    yield f"  compiled  {matrix.total / 1e12:12.3f}  matrix products, {ratio:.3f} of the model's"
    for name, flops in matrix.narrow.items():
        times = plan.topology.chip.peak_of(name) / plan.topology.chip.peak_flops
        yield f"    of them   {flops / 1e12:10.3f}  of {name}, at {times:g} times bfloat16's rate"
    for name, flops in matrix.by_kernel.items():
        yield f"    of them   {flops / 1e12:10.3f}  {name}: {matrix.source[name]}"
    for name in matrix.unknown_kernels:
        yield f"    not counted: {name}, a kernel without a cost estimate"
    for name in program.uncounted_loops:
        yield f"    taken once: {name}, a loop of unknown length"


def _traffic(program: ProgramFigures) -> Iterator[str]:
    yield "Collectives, GB that a device receives a step"
    for one in program.collectives:
        axes = " x ".join(one.axes)
        yield f"  {one.bytes / GB:9.3f}  {one.kind} over {axes} ({one.group}), {one.times:,} times"
    if not program.collectives:
        yield "  none"


def _time(plan: Plan) -> Iterator[str]:
    line, work = plan.roofline, plan.work
    yield "Time"
    for name, value in line.seconds.items():
        told = f"{value:10.4f} s a step at least" if value else f"{'-':>10}"
        yield f"  {name:<8}{told}"
    mfu = f"MFU {plan.mfu_serial:.2f} with nothing overlapped, {plan.mfu_overlapped:.2f} with all"
    yield f"  bound by {line.bound}: {mfu}"
    yield f"  {work.tokens_per_step:,} tokens a step, {work.tokens:,} in all"
    for pace in plan.throughputs:
        most = ", all that the bound allows" if pace.mfu == plan.mfu_overlapped else ""
        yield (
            f"  at MFU {pace.mfu:.2f}{most}: {pace.tokens_per_day / 1e9:,.2f} billion tokens a "
            f"day, {pace.days:,.1f} days, {math.ceil(pace.chip_hours):,} chip-hours"
        )
    scored = "the pass that scores the answers, " if plan.memory.reference else ""
    yield f"  and beside the steps: {scored}evaluation, saves, compiling"
