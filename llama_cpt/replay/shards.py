"""Shards of replay documents, each with a summary from which the command resumes.

A shard contains the documents of consecutive batches. It is complete if it has ``SHARD_BATCHES``
batches or ``SHARD_BYTES``. After each batch, the last shard and its summary are replaced, so that
the cost of a batch does not depend on the number of earlier shards.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
import hashlib
import json
from typing import Any

from etils import epath

from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_bounded, read_json_object

# A change of these two numbers needs a new FORMAT in ``writer``.
SHARD_BATCHES = 64
SHARD_BYTES = 8 << 20
MAX_SHARD_BYTES = 1 << 30
COUNTS: tuple[str, ...] = ("tokens", "documents", "short", "other_language")
"""Counts of each shard: written tokens and documents, and documents that were left out."""
REMEDY = "set another --output, or delete the folder to start again"


@dataclass(frozen=True)
class Shard:
    """The documents of consecutive batches."""

    number: int = 0
    first: int = 0
    """Number of the first batch, over all shards of the part."""
    batches: int = 0
    content: bytes = b""
    """JSON Lines with the documents."""
    counts: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    @property
    def is_complete(self) -> bool:
        """True if the shard is full, so that the next batch belongs to the next shard."""
        return self.batches >= SHARD_BATCHES or len(self.content) >= SHARD_BYTES

    @property
    def end(self) -> int:
        """Number of the batch after this shard."""
        return self.first + self.batches

    def next(self) -> "Shard":
        """Return this shard, or a new shard after it if it is complete."""
        return Shard(self.number + 1, self.end) if self.is_complete else self

    def add(self, texts: Sequence[str], counts: Mapping[str, int]) -> "Shard":
        """Return the shard with the documents and the counts of one more batch."""
        lines = (json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in texts)
        total = {name: self.counts[name] + counts[name] for name in COUNTS}
        content = self.content + "".join(lines).encode()
        return replace(self, batches=self.batches + 1, content=content, counts=total)

    def save(self, folder: epath.Path, part: str) -> None:
        """Write the documents, then the summary."""
        stem = f"{part}-{self.number:05}"
        digest = hashlib.sha256(self.content).hexdigest()
        summary = {"batches": self.batches, "bytes": len(self.content), "sha256": digest}
        write_atomic(folder / f"{stem}.jsonl", self.content)
        write_atomic(folder / f"{stem}.json", json.dumps({**summary, **self.counts}) + "\n")


def read_shards(folder: epath.Path, part: str) -> Iterator[Shard]:
    """Yield the shards of a part in order; raise UserError if one is damaged."""
    shard = Shard()
    while (path := folder / f"{part}-{shard.number:05}.json").exists():
        summary = read_json_object(str(path), REMEDY)
        if not _is_summary(summary):
            raise UserError(f"{path}: not the summary of a replay shard; {REMEDY}.")
        file = path.with_suffix(".jsonl")
        # A kill between the writing of a shard and of its summary leaves documents of one more
        # batch at the end.
        content = read_bounded(str(file), REMEDY, max_bytes=MAX_SHARD_BYTES)[: summary["bytes"]]
        if hashlib.sha256(content).hexdigest() != summary["sha256"]:
            raise UserError(f"{file}: was changed after it was written; {REMEDY}.")
        counts = {name: summary[name] for name in COUNTS}
        shard = replace(shard, batches=summary["batches"], content=content, counts=counts)
        yield shard
        if not shard.is_complete:
            return
        shard = shard.next()


def _is_summary(values: Mapping[str, Any]) -> bool:
    numbers = ("batches", "bytes", *COUNTS)
    return (
        all(type(values.get(name)) is int and values[name] >= 0 for name in numbers)
        and values["batches"] > 0
        and isinstance(values.get("sha256"), str)
    )
