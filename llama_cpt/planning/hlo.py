"""Parser of compiled HLO text into computations, instructions and shapes.

XLA gives no other access to a scheduled program. The parser reads only what the plan counts:
shapes with their layouts, operands, called computations and attributes. The syntax is that of
XLA's HLO printer (``xla/hlo/ir/hlo_instruction.cc``).
"""

from dataclasses import dataclass, field
import functools
import math
import re

# Bits per element. The width of any other dtype is the first number in its name: s8, f8e4m3fn.
BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0, "bf16": 16}

# Whether names begin with "%" depends on the printer's options, so it is optional everywhere.
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    """The shape of an array with its layout: ``bf16[8,128]{1,0:T(8,128)S(1)}``."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @functools.cached_property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @functools.cached_property
    def bytes(self) -> int:
        """Bytes without padding."""
        bits = BITS.get(self.dtype) or int((re.search(r"\d+", self.dtype) or ["0"])[0])
        return -(-self.elements * bits // 8) if self.dtype not in ("token", "opaque") else 0

    @functools.cached_property
    def padded_bytes(self) -> int:
        """Bytes in memory: the tile of the layout, ``T(8,128)``, pads the innermost dimensions."""
        order, tile = re.match(r"[\d,]*", self.layout)[0], re.search(r"T\(([\d,]+)\)", self.layout)
        if not tile or not order:
            return self.bytes
        dims = list(self.dims)
        # A layout lists dimensions from the innermost to the outermost, a tile the other way round.
        sizes = [int(size) for size in tile[1].split(",")]
        for dim, size in zip(map(int, order.split(",")), reversed(sizes), strict=False):
            dims[dim] = -(-dims[dim] // size) * size
        return Shape(self.dtype, tuple(dims)).bytes

    @property
    def in_hbm(self) -> bool:
        """Whether it is in HBM, not in VMEM, SMEM or host memory."""
        # A memory space other than HBM, which is 0, is printed as S(number).
        return "S(" not in self.layout

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One instruction: a line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Shapes of the result; more than one if it is a tuple, nested tuples flattened."""
    operands: tuple[str, ...]
    attributes: str
    """The text after the operands."""
    root: bool = False
    inside: str = ""
    """The text between the parentheses: the value of a constant, the number of a parameter."""

    @property
    def shape(self) -> Shape:
        """Shape of the result, or of its first element if it is a tuple."""
        return self.shapes[0] if self.shapes else Shape("opaque", ())

    @property
    def bytes(self) -> int:
        """Bytes of the whole result without padding."""
        return sum(shape.bytes for shape in self.shapes)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls."""
        branches = _BRANCHES.search(self.attributes)
        names = [name.strip(" %") for name in branches[1].split(",")] if branches else []
        return (*_CALLED.findall(self.attributes), *names)

    def attribute(self, name: str) -> str:
        """Return the text of ``name={...}`` or ``name=word``, or an empty string."""
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return match[1].strip("{}") if match else ""

    @property
    def origin(self) -> str:
        """The JAX operation that it was compiled from, with the path of ``jax.named_scope``."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclass(frozen=True)
class Computation:
    """A computation: its instructions by name, in the order of the schedule."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        return next(one for one in self.instructions.values() if one.root)

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """Return the instruction that computes operand ``index`` of ``instruction``."""
        return self.instructions[instruction.operands[index]]


def read_computations(text: str) -> tuple[dict[str, Computation], str]:
    """Parse the text of a compiled module; return computations by name and the entry's name."""
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
                # The XLA of JAX 0.12 and later prints operand %x#1 for element 1 of the tuple %x,
                # without a get-tuple-element instruction. Add that instruction.
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
    """Split the text of a tuple shape into its elements; nested tuples stay whole."""
    parts, depth = [""], 0
    for letter in result:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _shapes(text: str) -> tuple[Shape, ...]:
    # A bounded dynamic dimension is printed as <=8; its bound is what memory is reserved for.
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
    """Split ``text``, which begins with a parenthesis, after the matching closing parenthesis."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.end()], text[match.end() :]
    return text, ""
