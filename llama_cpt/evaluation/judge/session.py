"""Two models compared on a file of prompts: answers, judgements, win rate, each kept."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path

from etils import epath

from llama_cpt.evaluation.judge.endpoint import KEY_VARIABLE, EndpointJudge
from llama_cpt.evaluation.judge.person import PersonJudge
from llama_cpt.evaluation.judge.prompts import Answerer, cached_answers, read_prompts
from llama_cpt.evaluation.judge.results import WinRate, summary_lines, win_rate
from llama_cpt.evaluation.judge.verdicts import (
    WORKERS,
    AnswerPair,
    Judge,
    VerdictLog,
    judge_all,
    make_questions,
    pending,
)
from llama_cpt.evaluation.scores import JUDGE_FOLDER
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.output_folder import file_lock

RESULT = "win_rate.json"
PERSON = "person"


@dataclass(frozen=True)
class Candidate:
    """A model that answers."""

    name: str
    model_id: str
    """What tells its weights and settings from others'."""
    answer: Answerer


def add_conversation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``judge_conversations``."""
    group = parser.add_argument_group(
        "conversation", "Two models' answers, compared blindly pair by pair, in both orders."
    )
    add = group.add_argument
    told = "prompts: chats in any format of ours; as one process"
    add("--conversations", default="", metavar="FILE", help=told)
    told = f"an OpenAI-compatible endpoint (key: ${KEY_VARIABLE}), or person: you, here"
    add("--judge", default=PERSON, metavar="URL|person", help=told)
    add("--judge-model", default="", metavar="NAME", help="the model that judges at URL")
    told = "how long a reply may take (default 60)"
    add("--judge-timeout", type=float, default=60.0, metavar="SECONDS", help=told)
    told = "prompts taken, spread over FILE (default 100)"
    add("--prompts", type=int, default=100, metavar="N", help=told)
    told = "longest answer (default 512)"
    add("--answer-tokens", type=int, default=512, metavar="N", help=told)


def check_conversations(models: Sequence[str], options: argparse.Namespace) -> None:
    """Raise UserError for options that cannot work, before hours of other work."""
    if len(models) != 2:
        raise UserError(f"--conversations compares two models, not {len(models)}: name two.")
    for name, least in (("prompts", 1), ("answer_tokens", 1), ("judge_timeout", 0.001)):
        if not least <= getattr(options, name) < float("inf"):
            told = f"--{name.replace('_', '-')}"
            raise UserError(f"{told}={getattr(options, name)} must be above 0 and finite.")
    _judge(options)
    read_prompts(options.conversations, options.prompts)


def judge_conversations(
    contestants: tuple[Candidate, Candidate], output: Path, options: argparse.Namespace
) -> WinRate:
    """Ask, answer, judge what is left to judge, and write and print the outcome.

    Everything lies in ``output/conversations``: ``answers/NAME.jsonl``, ``judgements.jsonl``,
    ``win_rate.json``. A second call goes on with what the first has left.
    """
    folder = output / JUDGE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another process judges there; wait for it, or set another --output."
    with file_lock(epath.Path(folder / ".lock"), busy, wait=False):
        pairs, dropped = _pairs(contestants, folder, options)
        found = _judged(contestants, pairs, folder, options)
    write_atomic(epath.Path(folder / RESULT), json.dumps(asdict(found), indent=1).encode())
    print("\n".join(summary_lines(found)))
    if dropped:
        print(f"{dropped} prompts are left out: they leave an answer no room in the context.")
    return found


def _pairs(
    contestants: tuple[Candidate, Candidate], folder: Path, options: argparse.Namespace
) -> tuple[list[AnswerPair], int]:
    """Prompts that both answer, with their answers, and how many prompts are not among them."""
    prompts = read_prompts(options.conversations, options.prompts)
    said = [
        cached_answers(prompts, folder / "answers" / f"{one.name}.jsonl", one.model_id, one.answer)
        for one in contestants
    ]
    pairs = [
        AnswerPair(prompt, (first, second))
        for prompt, first, second in zip(prompts, *said, strict=True)
        if first is not None and second is not None
    ]
    if not pairs:
        raise UserError(f"{options.conversations}: no prompt leaves both models room to answer.")
    return pairs, len(prompts) - len(pairs)


def _judged(
    contestants: tuple[Candidate, Candidate],
    pairs: list[AnswerPair],
    folder: Path,
    options: argparse.Namespace,
) -> WinRate:
    judge = _judge(options)
    # A person would know the pair again.
    both_orders = isinstance(judge, EndpointJudge)
    record = VerdictLog(folder / "judgements.jsonl")
    left = pending(make_questions(pairs, both_orders=both_orders), record, judge.name)
    if isinstance(judge, PersonJudge):
        judge.total = len(left)
    judge_all(left, judge, record, workers=WORKERS if both_orders else 1)
    names = contestants[0].name, contestants[1].name
    done = record.of(pairs, judge.name)
    return win_rate(names, judge.name, pairs, done, both_orders=both_orders)


def _judge(options: argparse.Namespace) -> Judge:
    if options.judge == PERSON:
        return PersonJudge()
    return EndpointJudge(options.judge, options.judge_model, options.judge_timeout)
