"""Count of the floating-point operations in the matrix products of a compiled program."""

from dataclasses import dataclass, field
import itertools
import math
import re

from llama_cpt.hardware.chips import Chip
from llama_cpt.planning.hlo import Instruction
from llama_cpt.planning.program import HloStep

# Number of matrix products per tile of attention scores, by kernel name. Each product takes
# 2 * head_dim operations per score and head. The formula counts all causal pairs of a row, as if
# the row were one document. A row of several documents needs fewer operations, because the kernel
# skips tiles.
ATTENTION_PRODUCTS = {"flash_attention_forward": 2, "flash_attention_backward": 5}
# First two letters of XLA's names for int8 (s8) and for the fp8 formats (f8e4m3fn, f8e5m2).
EIGHT_BITS = ("s8", "f8")
BY_FORMULA = "by formula, one document per row"


@dataclass
class MatrixFlops:
    """Floating-point operations of a program's matrix products, per device and step."""

    products: float = 0.0
    """Operations of the dot and convolution instructions, counted exactly."""
    narrow: dict[str, float] = field(default_factory=dict)
    """The part of ``products`` whose operands have 8 bits, by dtype prefix (``s8`` or ``f8``)."""
    kernels: float = 0.0
    """Operations of all Pallas kernels, from their cost estimates or from a formula."""
    by_kernel: dict[str, float] = field(default_factory=dict)
    """Operations by kernel name."""
    source: dict[str, str] = field(default_factory=dict)
    """Phrases that state how the operations were counted, by kernel name."""
    unknown_kernels: list[str] = field(default_factory=list)
    """Names of kernels with neither a cost estimate nor a formula. They are not counted."""

    @property
    def total(self) -> float:
        """Sum of ``products`` and ``kernels``."""
        return self.products + self.kernels

    def as_bfloat16(self, chip: Chip) -> float:
        """Return the number of bfloat16 operations that take as long as ``total`` on ``chip``.

        An 8-bit operation counts as less than one bfloat16 operation if the chip's peak rate for
        8-bit operations is higher.
        """
        saved = (
            flops * (1 - chip.peak_flops / chip.peak_of(dtype))
            for dtype, flops in self.narrow.items()
        )
        return self.total - sum(saved)


def matrix_flops(steps: list[HloStep]) -> MatrixFlops:
    """Return the number of operations of all matrix products and kernels in ``steps``.

    Each instruction is counted as often as it runs.
    """
    found = MatrixFlops()
    for step in steps:
        match step.instruction.opcode:
            case "dot":
                _add_product(found, step, _dot(step))
            case "convolution":
                _add_product(found, step, _convolution(step))
            case "custom-call" if "tpu_custom_call" in step.instruction.attributes:
                _add_kernel(found, step)
            case _:
                pass
    return found


def kernel_name(kernel: Instruction) -> str:
    """Return the key of ``ATTENTION_PRODUCTS`` for ``kernel``.

    For a kernel without a key, returns the name of its instruction without the numeric suffix.
    """
    known = [name for name in ATTENTION_PRODUCTS if name in kernel.name + kernel.origin]
    return known[0] if known else re.sub(r"\.\d+$", "", kernel.name)


def _add_product(found: MatrixFlops, step: HloStep, flops: float) -> None:
    found.products += step.times * flops
    left, right = (step.computation.operand(step.instruction, n).shape.dtype[:2] for n in range(2))
    if left == right and left in EIGHT_BITS:
        found.narrow[left] = found.narrow.get(left, 0.0) + step.times * flops


def _add_kernel(found: MatrixFlops, step: HloStep) -> None:
    kernel, name = step.instruction, kernel_name(step.instruction)
    if estimate := re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', kernel.attributes):
        flops, source = float(estimate[1]), "its cost estimate"
    elif name in ATTENTION_PRODUCTS:
        flops, source = ATTENTION_PRODUCTS[name] * _scores_flops(step), BY_FORMULA
    else:
        found.unknown_kernels += [name] if name not in found.unknown_kernels else []
        return
    found.kernels += step.times * flops
    found.by_kernel[name] = found.by_kernel.get(name, 0.0) + step.times * flops
    found.source[name] = source


def _scores_flops(step: HloStep) -> float:
    """Return the number of operations of one matrix product for all scores of an attention kernel.

    The queries and the keys are the first two operands of rank 3, (batch, length, width). With
    context parallelism, a device's queries are balanced between the start and the end of the row,
    so a query attends to half of the keys on average. If a kernel processes a long row in N calls,
    the name of the kernel contains ``_N_walks``. The N calls together compute every score once.
    """
    known, kernel = step.computation.instructions, step.instruction
    shapes = (known[name].shape.dims for name in kernel.operands)
    query, key = itertools.islice((dims for dims in shapes if len(dims) == 3), 2)
    batch, queries, width = query
    calls = re.search(r"_(\d+)_walks", kernel.name + kernel.origin)
    # 2 * width operations per score, and queries * (keys + 1) / 2 causal scores.
    return batch * width * queries * (key[1] + 1) / (int(calls[1]) if calls else 1)


def _dot(step: HloStep) -> float:
    left = step.computation.operand(step.instruction, 0).shape
    dims = step.instruction.attribute("lhs_contracting_dims")
    contracted = math.prod(left.dims[int(dim)] for dim in dims.split(",") if dim)
    return 2.0 * step.instruction.shape.elements * contracted


def _convolution(step: HloStep) -> float:
    """Return the number of operations of a convolution, counted like XLA's ``HloCostAnalysis``.

    Positions in the padding do not count. The TPU compiler writes every matrix product as a
    convolution. A batch dimension of the product can become a spatial dimension, which is dilated
    so that each output position is computed from exactly one kernel position.
    """
    one = step.instruction
    left, right = (step.computation.operand(one, n).shape.dims for n in range(2))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels, one.attributes
    dims = [{letter: dim for dim, letter in enumerate(part)} for part in labels.groups()]
    window = _window(one.attributes, len(left) - 2)
    positions = math.prod(
        _valid_positions(
            left[dims[0][str(n)]],
            right[dims[1][str(n)]],
            one.shape.dims[dims[2][str(n)]],
            window[n],
        )
        for n in range(len(left) - 2)
    )
    groups = int(one.attribute("batch_group_count") or 1)
    batch = left[dims[0]["b"]] // groups
    return 2.0 * right[dims[1]["i"]] * right[dims[1]["o"]] * batch * positions


@dataclass(frozen=True)
class _Window:
    stride: int = 1
    low: int = 0
    """Number of padding positions before the first input position. A negative number removes input
    positions."""
    left_dilation: int = 1
    right_dilation: int = 1


def _window(attributes: str, dims: int) -> list[_Window]:
    """Parse the attribute ``window={size=3x1 pad=1_1x0_0 lhs_dilate=2x1}`` of a convolution.

    Returns one window for each of the ``dims`` spatial dimensions.
    """
    match = re.search(r"window=\{([^}]*)\}", attributes)
    words = dict(word.split("=") for word in match[1].split()) if match else {}

    def column(name: str, default: str) -> list[str]:
        return (words[name].split("x") if name in words else [default] * dims) or [default] * dims

    columns = zip(
        column("stride", "1"),
        column("pad", "0_0"),
        column("lhs_dilate", "1"),
        column("rhs_dilate", "1"),
        strict=True,
    )
    return [_Window(int(s), int(p.split("_")[0]), int(lo), int(ro)) for s, p, lo, ro in columns]


def _valid_positions(left: int, right: int, out: int, window: _Window) -> int:
    """Return the number of (output, kernel) position pairs that read a real input position.

    ``left``, ``right`` and ``out`` are the sizes of the input, the kernel and the output in one
    spatial dimension. Pairs that read padding or a zero of a dilated input are not counted.
    """
    if window == _Window() and right == 1:
        return out
    count = 0
    for kernel in range(right):
        for position in range(out):
            source = position * window.stride - window.low + kernel * window.right_dilation
            inside = 0 <= source // window.left_dilation < left
            # With dilation, only every left_dilation-th position is an element; the rest are zeros.
            count += source % window.left_dilation == 0 and inside
    return count
