"""Prompts to compare models on, and their answers, kept as they come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
import hashlib
import json
from pathlib import Path

from llama_cpt.config.fields import from_dict
from llama_cpt.data.chat.conversations import InvalidRecordError
from llama_cpt.data.chat.formats import read_prompt
from llama_cpt.data.sources.documents import BadDocument
from llama_cpt.data.sources.files import BLOCK_BYTES, Sources
from llama_cpt.data.sources.json_records import parse_records, read_record_blocks
from llama_cpt.evaluation.judge.verdicts import Prompt
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.jsonl import append_line, read_lines
from llama_cpt.runtime.progress import Progress
from llama_cpt.training.heldout import evenly_spaced

Answerer = Callable[[Sequence[Prompt]], Iterator[tuple[int, str | None]]]
"""Each prompt's place and its answer, in any order, as they come; None for a prompt that leaves an
answer no room."""


def read_prompts(path: str, wanted: int) -> list[Prompt]:
    """Up to ``wanted`` prompts of a file in a chat format, spread over it, each once.

    Raises UserError, naming the record, for what asks nothing.
    """
    found = list(dict.fromkeys(_prompts(path)))
    if not found:
        raise UserError(f"{path}: holds no prompt.")
    return [found[index] for index in evenly_spaced(len(found), wanted)]


def cached_answers(
    prompts: Sequence[Prompt], path: Path, made_by: str, answerer: Answerer
) -> list[str | None]:
    """One answer to each prompt, those in ``path`` not made again.

    ``made_by`` tells the weights and the settings of ``answerer`` apart from others'.
    """
    kept = {line.id: line.answer for line in read_lines(path, partial(from_dict, _Answer))}
    ids = [_id(prompt, made_by) for prompt in prompts]
    missing = [(i, p) for i, p in zip(ids, prompts, strict=True) if i not in kept]
    if not missing:
        return [kept[i] for i in ids]
    with Progress(f"answers of {path.stem}", float(len(missing)), "prompts") as progress:
        for place, answer in answerer([prompt for _, prompt in missing]):
            i, prompt = missing[place]
            kept[i] = answer
            append_line(path, asdict(_Answer(i, prompt[-1].content, answer)))
            progress.update(1.0)
    return [kept[i] for i in ids]


@dataclass(frozen=True)
class _Answer:
    """A line of the file of answers."""

    id: str
    asked: str
    """The prompt's last turn."""
    answer: str | None


def _id(prompt: Prompt, made_by: str) -> str:
    said = json.dumps([[(turn.role, turn.content) for turn in prompt], made_by])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _prompts(path: str) -> Iterator[Prompt]:
    blocks = read_record_blocks(Sources("conversations", (path,)), BLOCK_BYTES)
    for record in (record for block in blocks for record in parse_records(block)):
        if isinstance(record, BadDocument):
            raise UserError(f"{record}.")
        try:
            yield read_prompt(record.values)
        except InvalidRecordError as error:
            told = f" ({error.detail})" if error.detail else ""
            raise UserError(f"{path}:{record.number}: no prompt: {error}{told}.") from None
