"""Formatting of the text that the ``plan`` command prints."""

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
    """Format a plan as text without a final newline.

    The text includes ``remedy``, the first change to try, if the run does not fit.
    """
    arrays = _arrays(plan.memory, plan.program.live, plan.peak_breakdown)
    traffic = _traffic(plan.program)
    sections = (_title(plan), _memory(plan, remedy), arrays, _work(plan), traffic, _time(plan))
    return "\n\n".join("\n".join(section) for section in sections)


def format_refusal(refused: OutOfMemory, topology: Topology, remedy: str) -> str:
    """Format the compiler's error for a step that does not fit, followed by ``remedy``."""
    lines = [
        f"{_slices(topology)}: does not fit",
        f"  needs {refused.used / GB:.2f} GB per device; a program can use "
        f"{refused.available / GB:.2f} GB. The compiler stopped, so FLOPs and collectives are "
        "unknown.",
        f"  first to try: {remedy}",
    ]
    if refused.arrays:
        lines += ["", "Largest arrays that the compiler reports, GB per device"]
    for size, shape, origin in refused.arrays[:SHOWN_ARRAYS]:
        lines.append(f"  {size / GB:9.3f}  {shape}  {_short(origin)}")
    return "\n".join(lines)


def format_trial(tried: CompiledCandidate) -> str:
    """Format the result of compiling a setting in a search as one line."""
    result = "fits" if tried.fits else "does not fit"
    return f"{result}: {tried.used / GB:.2f} GB per device; {tried.candidate.options}"


def format_search(found: list[tuple[Candidate, Plan]], tried: int, topology: Topology) -> str:
    """Format the result of a search as a table of the settings ``found``, in the given order.

    ``tried`` is the number of settings that were compiled.
    """
    lines = [
        f"{_slices(topology)}: {len(found)} of {tried} compiled settings fit, fastest first",
        "seconds per step by the roofline, serial (overlapped); peak GB per device; options",
    ]
    for candidate, plan in found:
        line = plan.roofline
        seconds = f"{line.serial_seconds:8.3f} ({line.overlapped_seconds:.3f}, {line.bound})"
        lines.append(f"  {seconds}  {plan.memory.peak / GB:6.2f}  {candidate.options}")
    return "\n".join(lines)


def _slices(topology: Topology) -> str:
    count = f"{topology.slices} x " if topology.slices > 1 else ""
    return f"{count}{topology.text} ({topology.name}), {topology.chips:,} chips"


def _title(plan: Plan) -> Iterator[str]:
    work = plan.work
    axes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    yield f"{_slices(plan.topology)}; mesh: {axes or 'one device'}"
    yield (
        f"{work.rows} x {work.sequence_length} tokens per device at a time, micro-batches per "
        f"step: {work.num_microbatches}, remat: {plan.remat}"
    )


def _memory(plan: Plan, remedy: str) -> Iterator[str]:
    memory = plan.memory
    yield "Memory, GB per device"
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
        ("loading", memory.loading, "reading the base weights in float32, before the steps"),
        ("reference", memory.reference, "peak of the reference pass, before the steps"),
        ("evaluation", memory.evaluation, "peak of held-out evaluation, moments included"),
    ):
        if one:
            refused = ", at least: the compiler rejects it" if one.refused else ""
            yield f"  {name:<12}{one.peak / GB:9.3f}  {remark}{refused}"
    if memory.fits:
        yield f"  fits: {memory.left / GB:.2f} GB of {memory.available / GB:.2f} GB are left"
    else:
        above, chip = -memory.left / GB, memory.available / GB
        excess = f"{above:.2f} GB above" if above > 0 else "the compiler reserves a part of"
        yield f"  does not fit: {excess} the chip's {chip:.2f} GB"
        yield f"  first to try: {remedy}"


def _arrays(memory: Memory, live: Peak, breakdown: PeakBreakdown) -> Iterator[str]:
    yield "Arrays at the peak without the arguments, GB per device, by a liveness analysis"
    yield f"  its peak with the arguments is {(live.bytes + memory.arguments) / GB:.2f} GB"
    yield (
        f"  gradients {breakdown.gradients / GB:.2f} GB, saved for the backward pass "
        f"{breakdown.saved / GB:.2f} GB, others {breakdown.others / GB:.2f} GB"
    )
    for size, count, shape, origin in largest_buffers(live, SHOWN_ARRAYS):
        yield f"  {size / GB:9.3f}  {count} x {shape}  {_short(origin)}"


def _short(origin: str) -> str:
    """Return ``origin``; if it has 60 or more characters, only '...' and the last 57."""
    return origin if len(origin) < 60 else "..." + origin[-57:]


def _work(plan: Plan) -> Iterator[str]:
    program, matrix, factor = plan.program, plan.program.matrix, plan.work.per_weight
    ratio = matrix.total / plan.model_flops
    yield "Operations, TFLOP per device and step"
    yield f"  model     {plan.model_flops / 1e12:12.3f}  {factor} N and causal attention, analytic"
    yield f"  compiled  {matrix.total / 1e12:12.3f}  matrix products, {ratio:.3f} times the model's"
    for name, flops in matrix.narrow.items():
        times = plan.topology.chip.peak_of(name) / plan.topology.chip.peak_flops
        yield f"    of them   {flops / 1e12:10.3f}  {name}, at {times:g} times the bfloat16 rate"
    for name, flops in matrix.by_kernel.items():
        yield f"    of them   {flops / 1e12:10.3f}  {name}: {matrix.source[name]}"
    for name in matrix.unknown_kernels:
        yield f"    not counted: {name}, a kernel without a cost estimate"
    for name in program.uncounted_loops:
        yield f"    counted once: {name}, a loop with an unknown trip count"


def _traffic(program: ProgramFigures) -> Iterator[str]:
    yield "Collectives, GB received per device and step"
    for one in program.collectives:
        axes = " x ".join(one.axes)
        devices = f"({one.group} devices)"
        yield f"  {one.bytes / GB:9.3f}  {one.kind} over {axes} {devices}, {one.times:,} times"
    if not program.collectives:
        yield "  none"


def _time(plan: Plan) -> Iterator[str]:
    line, work = plan.roofline, plan.work
    yield "Time"
    for name, value in line.seconds.items():
        least = f"{value:10.4f} s per step at least" if value else f"{'-':>10}"
        yield f"  {name:<8}{least}"
    serial, overlapped = f"{plan.mfu_serial:.2f}", f"{plan.mfu_overlapped:.2f}"
    mfu = f"MFU {serial} if nothing overlaps, {overlapped} if everything overlaps"
    yield f"  bound by {line.bound}: {mfu}"
    yield f"  {work.tokens_per_step:,} tokens per step, {work.tokens:,} tokens in all"
    for one in plan.throughputs:
        limit = ", the roofline's bound" if one.mfu == plan.mfu_overlapped else ""
        yield (
            f"  at MFU {one.mfu:.2f}{limit}: {one.tokens_per_day / 1e9:,.2f} billion tokens per "
            f"day, {one.days:,.1f} days, {math.ceil(one.chip_hours):,} chip-hours"
        )
    reference = "the reference pass, " if plan.memory.reference else ""
    yield f"  not included: {reference}evaluation, checkpoints, compilation"
