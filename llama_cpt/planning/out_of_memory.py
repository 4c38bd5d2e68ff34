"""The compiler's refusal of a program that is larger than the chip's memory, taken apart."""

from dataclasses import dataclass
import re

UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class OutOfMemory:
    """What did not fit, in bytes."""

    used: int
    """At least: of some programs the compiler tells temporaries alone, and of no array."""
    available: int
    arrays: tuple[tuple[int, str, str], ...]
    """The largest: bytes, shape, the model's operation that made it."""


def parse_out_of_memory(message: str) -> OutOfMemory | None:
    """From an error's text; None where it tells of something else."""
    told = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", message) or re.search(
        r"temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message
    )
    if "RESOURCE_EXHAUSTED" not in message or not told:
        return None
    arrays = []
    for part in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = re.match(r"[\d.]+\w", part)
        shape = re.search(r"Shape: (\w+\[[\d,]*\])", part)
        origin = re.search(r'op_name="([^"]*)"', part)
        if size and shape:
            arrays.append((_bytes(size[0]), shape[1], origin[1] if origin else ""))
    return OutOfMemory(_bytes(told[1]), _bytes(told[2]), tuple(arrays))


def _bytes(text: str) -> int:
    """``15.75G``."""
    return round(float(text[:-1]) * UNITS[text[-1].upper()])
