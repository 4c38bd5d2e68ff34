"""Answers of chat models to the prompts of a judged comparison, generated once and cached."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
import hashlib
import json
from pathlib import Path

from jax.sharding import Mesh
import numpy as np

from llama_cpt.config.fields import from_dict
from llama_cpt.data.chat.conversations import InvalidRecordError
from llama_cpt.data.chat.formats import read_prompt
from llama_cpt.data.chat.template import ChatTemplate, answer_end_ids
from llama_cpt.data.sources.documents import BadDocument
from llama_cpt.data.sources.files import BLOCK_BYTES, Sources
from llama_cpt.data.sources.json_records import parse_records, read_record_blocks
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.evaluation.judge.verdicts import Prompt
from llama_cpt.evaluation.written_answers import AnswerSpec, written_answers
from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.sampling import Sampling
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


@dataclass(frozen=True)
class ChatModel:
    """A loaded model with its tokenizer, mesh and chat template."""

    decoder: Decoder
    tokenizer: Tokenizer
    mesh: Mesh
    template: ChatTemplate
    end_ids: tuple[int, ...] = ()
    """Ids that end an answer in addition to EOS and the template's end-of-turn token."""


def make_answerer(load: Callable[[], ChatModel], max_new_tokens: int) -> Answerer:
    """Return a function that answers prompts greedily with the model that ``load`` returns.

    Each call of the returned function loads the model, and releases it after the last answer. Two
    models are therefore never in memory at the same time.
    """

    def answers(prompts: Sequence[Prompt]) -> Iterator[tuple[int, str | None]]:
        model = load()
        rows = [np.array(model.template.prompt(prompt), np.int32) for prompt in prompts]
        longest = model.decoder.ends.config.context_length - max_new_tokens
        fit = [index for index, row in enumerate(rows) if len(row) <= longest]
        yield from ((index, None) for index, row in enumerate(rows) if len(row) > longest)
        written = written_answers(
            model.decoder,
            model.tokenizer,
            model.mesh,
            [rows[index] for index in fit],
            [AnswerSpec((), max_new_tokens, Sampling())] * len(fit),
            answer_end_ids(model.tokenizer, model.template, model.end_ids),
        )
        yield from ((fit[number], text.strip()) for number, text in written)

    return answers
