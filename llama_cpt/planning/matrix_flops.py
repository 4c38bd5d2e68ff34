"""FLOPs of the matrix products of a compiled program: the work of the matrix units."""

from dataclasses import dataclass, field
import itertools
import math
import re

from llama_cpt.hardware.chips import Chip
from llama_cpt.planning.hlo import Instruction
from llama_cpt.planning.program import HloStep

# Number of matrix products per tile of attention scores, by kernel name. Each product takes
# 2 * head_dim operations per score and head. The formula counts the causal pairs of a row that is
# one document; rows of several documents need less, since the kernel skips tiles.
ATTENTION_PRODUCTS = {"flash_attention_forward": 2, "flash_attention_backward": 5}
# Prefixes of the compiler's names for int8 and the two fp8 formats.
EIGHT_BITS = ("s8", "f8")
BY_FORMULA = "by formula, one document a row"


@dataclass
class MatrixFlops:
    """Floating-point operations of one device per step."""

    products: float = 0.0
    """Operations of the compiler's own products, counted exactly."""
    narrow: dict[str, float] = field(default_factory=dict)
    """The part of ``products`` with 8-bit operands, by the operands' dtype prefix."""
    kernels: float = 0.0
    """Operations of Pallas kernels, by their cost estimate or by formula."""
    by_kernel: dict[str, float] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    """How each kernel's operations were counted."""
    unknown_kernels: list[str] = field(default_factory=list)
    """Kernels without a cost estimate or formula, which are not counted."""

    @property
    def total(self) -> float:
        """Operations of products and kernels."""
        return self.products + self.kernels

    def as_bfloat16(self, chip: Chip) -> float:
        """Return the bfloat16 operations that take ``chip`` as long as all of these."""
        saved = (
            flops * (1 - chip.peak_flops / chip.peak_of(dtype))
            for dtype, flops in self.narrow.items()
        )
        return self.total - sum(saved)


def matrix_flops(steps: list[HloStep]) -> MatrixFlops:
    """Sum the operations of all products in ``steps``, each times the trips of its loops."""
    found = MatrixFlops()
    for step in steps:
        match step.instruction.opcode:
            case "dot":
                _add_product(found, step, _dot(step))
            case "convolution":
                _add_product(found, step, _convolution(step))
            case "custom-call" if "tpu_custom_call" in step.instruction.attributes:
                _add_kernel(found, step)
    return found


def kernel_name(kernel: Instruction) -> str:
    """Return the name that ``pallas_call`` was given, or that of the instruction."""
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
    """Return the operations of one product over all causal scores of an attention kernel.

    Queries and keys are the first two operands of shape (batch, length, width). With context
    parallelism each device has as many early queries as late ones, so that its queries see half of
    the keys on average. A kernel that processes a long row in several calls has the number of calls
    in its name, ``_N_walks``; all of them together visit every score once.
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
    """Count multiply-adds of input and kernel positions as XLA's HloCostAnalysis does.

    Positions in the padding do not count. The TPU compiler writes every matrix product as a
    convolution; a batch dimension can then be a spatial one, dilated so that each output position
    meets exactly one kernel position.
    """
    one = step.instruction
    left, right = (step.computation.operand(one, n).shape.dims for n in range(2))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
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
    """Padding before the first position; a negative one removes positions."""
    left_dilation: int = 1
    right_dilation: int = 1


def _window(attributes: str, dims: int) -> list[_Window]:
    """Parse ``window={size=3x1 pad=1_1x0_0 lhs_dilate=2x1}``, one window per spatial dimension."""
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
    """Count pairs (output, kernel position) of a spatial dimension that meet an input position."""
    if window == _Window() and right == 1:
        return out
    count = 0
    for kernel in range(right):
        for position in range(out):
            source = position * window.stride - window.low + kernel * window.right_dilation
            inside = 0 <= source // window.left_dilation < left
            # A dilated input has zeros between its elements.
            count += source % window.left_dilation == 0 and inside
    return count
