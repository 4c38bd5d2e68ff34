"""Prompts for a judged comparison, and a cache of the models' answers to the prompts."""

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
"""A function that yields the index and the answer of each prompt, in any order. The answer is None
if the prompt leaves no room for an answer in the model's context."""


def read_prompts(path: str, count: int) -> list[Prompt]:
    """Return up to ``count`` distinct prompts, evenly spaced over a file in any chat format.

    Raises UserError if the file contains no prompts or if a record contains no prompt.
    """
    found = list(dict.fromkeys(_prompts(path)))
    if not found:
        raise UserError(f"{path}: has no prompts; set a file in a format of docs/guide/chat.md.")
    return [found[index] for index in evenly_spaced(len(found), count)]


def cached_answers(
    prompts: Sequence[Prompt], path: Path, model_id: str, answerer: Answerer
) -> list[str | None]:
    """Return one answer per prompt; missing answers are generated and appended to ``path``.

    ``model_id`` identifies the weights and the settings of ``answerer``.
    """
    cached = {line.id: line.answer for line in read_lines(path, partial(from_dict, _Answer))}
    ids = [_answer_id(prompt, model_id) for prompt in prompts]
    missing = [(i, p) for i, p in zip(ids, prompts, strict=True) if i not in cached]
    if not missing:
        return [cached[i] for i in ids]
    with Progress(f"answers of {path.stem}", float(len(missing)), "prompts") as progress:
        for index, answer in answerer([prompt for _, prompt in missing]):
            i, prompt = missing[index]
            cached[i] = answer
            append_line(path, asdict(_Answer(i, prompt[-1].content, answer)))
            progress.update(1.0)
    return [cached[i] for i in ids]


@dataclass(frozen=True)
class _Answer:
    """A line of the file of answers."""

    id: str
    asked: str
    """Text of the last turn of the prompt."""
    answer: str | None


def _answer_id(prompt: Prompt, model_id: str) -> str:
    content = json.dumps([[(turn.role, turn.content) for turn in prompt], model_id])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _prompts(path: str) -> Iterator[Prompt]:
    blocks = read_record_blocks(Sources("conversations", (path,)), BLOCK_BYTES)
    for record in (record for block in blocks for record in parse_records(block)):
        if isinstance(record, BadDocument):
            raise UserError(f"{record}.")
        try:
            yield read_prompt(record.values)
        except InvalidRecordError as error:
            detail = f" ({error.detail})" if error.detail else ""
            raise UserError(f"{path}:{record.number}: no prompt: {error}{detail}.") from None
