"""The compiler's program read back from its text."""

from dataclasses import dataclass, field
import functools
import math
import re

BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0, "bf16": 16}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    """An array of a program: ``bf16[8,128]{1,0:T(8,128)S(1)}``."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @functools.cached_property
    def elements(self) -> int:
        """How many."""
        return math.prod(self.dims)

    @functools.cached_property
    def bytes(self) -> int:
        """Without padding."""
        bits = BITS.get(self.dtype) or int((re.search(r"\d+", self.dtype) or ["0"])[0])
        return -(-self.elements * bits // 8) if self.dtype not in ("token", "opaque") else 0

    @functools.cached_property
    def padded_bytes(self) -> int:
        """As it lies in memory: the tile of its layout, ``T(8,128)``, pads its innermost dims."""
        order, tile = re.match(r"[\d,]*", self.layout)[0], re.search(r"T\(([\d,]+)\)", self.layout)
        if not tile or not order:
            return self.bytes
        dims = list(self.dims)
        sides = [int(side) for side in tile[1].split(",")]
        for dim, side in zip(map(int, order.split(",")), reversed(sides), strict=False):
            dims[dim] = -(-dims[dim] // side) * side
        return Shape(self.dtype, tuple(dims)).bytes

    @property
    def in_hbm(self) -> bool:
        """Not in one of the chip's smaller memories, nor on the host."""
        return "S(" not in self.layout

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Of its result: several where that is a tuple."""
    operands: tuple[str, ...]
    attributes: str
    """What follows the operands."""
    root: bool = False
    inside: str = ""
    """The text between the parentheses: a constant's value, a parameter's number."""

    @property
    def shape(self) -> Shape:
        """Of a result that is one array, else its first part's."""
        return self.shapes[0] if self.shapes else Shape("opaque", ())

    @property
    def bytes(self) -> int:
        """Of the whole result."""
        return sum(shape.bytes for shape in self.shapes)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that it names."""
        branches = _BRANCHES.search(self.attributes)
        names = [name.strip(" %") for name in branches[1].split(",")] if branches else []
        return (*_CALLED.findall(self.attributes), *names)

    def attribute(self, name: str) -> str:
        """The text of ``name={...}`` or ``name=word``; empty where there is none."""
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return match[1].strip("{}") if match else ""

    @property
    def origin(self) -> str:
        """The operation of the model that it came from, as ``jax.named_scope`` names it."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they run."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """Its result."""
        return next(one for one in self.instructions.values() if one.root)

    def operand(self, instruction: Instruction, place: int) -> Instruction:
        """An instruction's operand."""
        return self.instructions[instruction.operands[place]]


def read_computations(text: str) -> tuple[dict[str, Computation], str]:
    """``compiled.as_text()`` taken apart: computations by name, and the name of the entry."""
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    results: dict[str, str] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = Computation(header[2])
            results.clear()
            entry = header[2] if header[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            text = match[3]
            result, rest = _until_closed(text) if text.startswith("(") else text.split(" ", 1)
            one = _instruction(match[2], result, rest, bool(match[1]))
            for part in one.operands:
                # %x#1, for the second of the tuple %x: as XLA writes it since JAX 0.12.
                if "#" in part and part not in current.instructions:
                    current.instructions[part] = _element(part, results)
            current.instructions[one.name], results[one.name] = one, result
    return computations, entry


def _element(name: str, results: dict[str, str]) -> Instruction:
    whole, _, index = name.partition("#")
    shapes = _shapes(_parts(results[whole])[int(index)])
    return Instruction(name, "get-tuple-element", shapes, (whole,), f", index={index}")


@functools.lru_cache(64)
def _parts(result: str) -> list[str]:
    """A tuple's text taken apart, but not the tuples within it."""
    parts, depth = [""], 0
    for letter in result:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _instruction(name: str, result: str, rest: str, root: bool) -> Instruction:
    opcode, _, rest = rest.strip().partition("(")
    inside, attributes = _until_closed("(" + rest)
    inside = inside[1:-1]
    operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)?)", inside))
    return Instruction(name, opcode, _shapes(result), operands, attributes, root, inside)


def _until_closed(text: str) -> tuple[str, str]:
    """``text``, which opens with a parenthesis, split after the one that closes it."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.end()], text[match.end() :]
    return text, ""
