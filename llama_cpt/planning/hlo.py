"""Parser of compiled HLO text into computations, instructions and shapes.

The text is the only form in which XLA gives access to a scheduled program. The parser reads
shapes, layouts, operands, called computations and attributes. XLA's HLO printer defines the syntax
(``xla/hlo/ir/hlo_instruction.cc``).
"""

from dataclasses import dataclass, field
import functools
import math
import re

# Bits per element of some dtypes. The width of any other dtype is the first number in the dtype's
# name: s8 and f8e4m3fn have 8 bits.
BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0, "bf16": 16}

# The "%" before a name is optional, because it depends on the options of XLA's printer.
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    """The dtype, dimensions and layout of an array, such as ``bf16[8,128]{1,0:T(8,128)S(1)}``."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @functools.cached_property
    def elements(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.dims)

    @functools.cached_property
    def bytes(self) -> int:
        """Size in bytes without padding."""
        bits = BITS.get(self.dtype) or int((re.search(r"\d+", self.dtype) or ["0"])[0])
        return -(-self.elements * bits // 8) if self.dtype not in ("token", "opaque") else 0

    @functools.cached_property
    def padded_bytes(self) -> int:
        """Size in bytes with padding to multiples of the layout's tile, such as ``T(8,128)``."""
        order = re.match(r"[\d,]+", self.layout)
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        if not tile or not order:
            return self.bytes
        dims = list(self.dims)
        # A layout lists dimensions from innermost to outermost. T(...) lists sizes from outermost
        # to innermost.
        sizes = [int(size) for size in tile[1].split(",")]
        for dim, size in zip(map(int, order[0].split(",")), reversed(sizes), strict=False):
            dims[dim] = -(-dims[dim] // size) * size
        return Shape(self.dtype, tuple(dims)).bytes

    @property
    def in_hbm(self) -> bool:
        """Whether the array is in HBM, as opposed to VMEM, SMEM or host memory."""
        # HBM is memory space 0, which is not printed. Other memory spaces are printed as S(number).
        return "S(" not in self.layout

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """An HLO instruction: one line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Shapes of the result's arrays. A tuple has several shapes; nested tuples are flattened."""
    operands: tuple[str, ...]
    """Names of the instructions that compute the operands."""
    attributes: str
    """The text after the operands."""
    root: bool = False
    inside: str = ""
    """The text between the parentheses after the opcode. For a constant, the text is its value; for
    a parameter, it is the parameter's number."""

    @property
    def shape(self) -> Shape:
        """Shape of the result; if the result is a tuple, the shape of its first array."""
        return self.shapes[0] if self.shapes else Shape("opaque", ())

    @property
    def bytes(self) -> int:
        """Size of all arrays of the result in bytes, without padding."""
        return sum(shape.bytes for shape in self.shapes)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that the instruction calls."""
        branches = _BRANCHES.search(self.attributes)
        names = [name.strip(" %") for name in branches[1].split(",")] if branches else []
        return (*_CALLED.findall(self.attributes), *names)

    def attribute(self, name: str) -> str:
        """Return the value of ``name={value}`` or ``name=value``; empty if there is no ``name``."""
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return match[1].strip("{}") if match else ""

    @property
    def origin(self) -> str:
        """Path of the JAX operation that the instruction implements; empty if it is unknown.

        The path includes the scopes of ``jax.named_scope``.
        """
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclass(frozen=True)
class Computation:
    """A computation, with its instructions by name in scheduled order."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """The instruction that computes the result of the computation."""
        return next(one for one in self.instructions.values() if one.root)

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """Return the instruction that computes operand ``index`` of ``instruction``."""
        return self.instructions[instruction.operands[index]]


def read_computations(text: str) -> tuple[dict[str, Computation], str]:
    """Parse the HLO text of a module.

    Returns a map from name to computation, and the name of the entry computation.
    """
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    results: dict[str, str] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = Computation(header[2])
            results.clear()
            entry = header[2] if header[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            definition = match[3]
            if definition.startswith("("):
                result, rest = _split_after_parenthesis(definition)
            else:
                result, rest = definition.split(" ", 1)
            one = _instruction(match[2], result, rest, bool(match[1]))
            for part in one.operands:
                # JAX 0.12 and later print operand %x#1 for element 1 of the tuple %x, without a
                # get-tuple-element instruction. Add the missing instruction.
                if "#" in part and part not in current.instructions:
                    current.instructions[part] = _tuple_element(part, results)
            current.instructions[one.name], results[one.name] = one, result
    return computations, entry


def _tuple_element(name: str, results: dict[str, str]) -> Instruction:
    whole, _, index = name.partition("#")
    shapes = _shapes(_split_tuple(results[whole])[int(index)])
    return Instruction(name, "get-tuple-element", shapes, (whole,), f", index={index}")


@functools.lru_cache(64)
def _split_tuple(result: str) -> list[str]:
    """Return the text of each element of a tuple shape; a nested tuple is one element."""
    parts, depth = [""], 0
    for letter in result:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _shapes(text: str) -> tuple[Shape, ...]:
    # A dynamic dimension is printed as <=8. Memory is reserved for the bound, 8.
    return tuple(
        Shape(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _instruction(name: str, result: str, rest: str, root: bool) -> Instruction:
    opcode, _, rest = rest.strip().partition("(")
    inside, attributes = _split_after_parenthesis("(" + rest)
    inside = inside[1:-1]
    operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)?)", inside))
    return Instruction(name, opcode, _shapes(result), operands, attributes, root, inside)


def _split_after_parenthesis(text: str) -> tuple[str, str]:
    """Split ``text``, which starts with a parenthesis, after the matching closing parenthesis."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.end()], text[match.end() :]
    return text, ""
