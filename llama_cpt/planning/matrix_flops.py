"""Operations of a program's matrix products: what the matrix units are asked to do."""

from dataclasses import dataclass, field
import itertools
import math
import re

from llama_cpt.hardware.chips import Chip
from llama_cpt.planning.hlo import Instruction
from llama_cpt.planning.program import HloStep

# Kernel's name in the program -> matrix products of a tile of scores, each 2 * head_dim operations
# a score and head. Their sum is over causal pairs of one document a row: with several documents a
# row fewer tiles are visited.
ATTENTION_PRODUCTS = {"flash_attention_forward": 2, "flash_attention_backward": 5}
# How the compiler writes int8 and both kinds of fp8.
EIGHT_BITS = ("s8", "f8")
BY_FORMULA = "by formula, one document a row"


@dataclass
class MatrixFlops:
    """Floating-point operations of one device a step."""

    products: float = 0.0
    """Of the compiler's own products, counted exactly."""
    narrow: dict[str, float] = field(default_factory=dict)
    """Of them, those of ``EIGHT_BITS``, by their operands' type."""
    kernels: float = 0.0
    """Of Pallas kernels, by their cost estimate or by formula."""
    by_kernel: dict[str, float] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    """Of each kernel's figure."""
    unknown_kernels: list[str] = field(default_factory=list)
    """Kernels without estimate or formula: not counted."""

    @property
    def total(self) -> float:
        """All that was counted."""
        return self.products + self.kernels

    def as_bfloat16(self, chip: Chip) -> float:
        """So many operations in bfloat16 take ``chip`` as long as all of these."""
        saved = (
            flops * (1 - chip.peak_flops / chip.peak_of(dtype))
            for dtype, flops in self.narrow.items()
        )
        return self.total - sum(saved)


def matrix_flops(steps: list[HloStep]) -> MatrixFlops:
    """Of every product in ``steps``, loop bodies times their trips."""
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
    """The name that ``pallas_call`` was given, or the instruction's own."""
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
    """Of one product of all causal scores; queries and keys are the first (batch, length, width).

    Where a row lies on several devices, each has as many early queries as late ones: they see half
    of the row's keys. A kernel that walks a long row in several calls says in how many.
    """
    known, kernel = step.computation.instructions, step.instruction
    shapes = (known[name].shape.dims for name in kernel.operands)
    query, key = itertools.islice((dims for dims in shapes if len(dims) == 3), 2)
    batch, queries, width = query
    walks = re.search(r"_(\d+)_walks", kernel.name + kernel.origin)
    return batch * width * queries * (key[1] + 1) / (int(walks[1]) if walks else 1)


def _dot(step: HloStep) -> float:
    left = step.computation.operand(step.instruction, 0).shape
    dims = step.instruction.attribute("lhs_contracting_dims")
    contracted = math.prod(left.dims[int(dim)] for dim in dims.split(",") if dim)
    return 2.0 * step.instruction.shape.elements * contracted


def _convolution(step: HloStep) -> float:
    """As XLA's own cost analysis: pairs of input and kernel that meet, padding not counted.

    On a TPU every product is a convolution; a batch dim can be a spatial one, dilated so that each
    output place meets one kernel place.
    """
    one = step.instruction
    left, right = (step.computation.operand(one, n).shape.dims for n in range(2))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    at = [{letter: dim for dim, letter in enumerate(part)} for part in labels.groups()]
    window = _window(one.attributes, len(left) - 2)
    met = math.prod(
        _meetings(
            left[at[0][str(n)]], right[at[1][str(n)]], one.shape.dims[at[2][str(n)]], window[n]
        )
        for n in range(len(left) - 2)
    )
    batches = int(one.attribute("batch_group_count") or 1)
    batch = left[at[0]["b"]] // batches
    return 2.0 * right[at[1]["i"]] * right[at[1]["o"]] * batch * met


@dataclass(frozen=True)
class _Window:
    stride: int = 1
    low: int = 0
    """Padding before the first place; below 0 cuts places off."""
    left_dilation: int = 1
    right_dilation: int = 1


def _window(attributes: str, dims: int) -> list[_Window]:
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


def _meetings(left: int, right: int, out: int, window: _Window) -> int:
    """Pairs (output place, kernel place) of one spatial dim that fall on an input place."""
    if window == _Window() and right == 1:
        return out
    count = 0
    for kernel in range(right):
        for place in range(out):
            at = place * window.stride - window.low + kernel * window.right_dilation
            count += at % window.left_dilation == 0 and 0 <= at // window.left_dilation < left
    return count
