"""A judged comparison of two models on a file of prompts: answers, verdicts and the win rate."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path

from etils import epath

from llama_cpt.evaluation.judge.answers import Answerer, cached_answers, read_prompts
from llama_cpt.evaluation.judge.judges import EndpointJudge, PersonJudge
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
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.output_folder import file_lock

RESULT = "win_rate.json"
VERDICTS = "judgments.jsonl"
FORMER_VERDICTS = "judgements.jsonl"
"""Name of the file of verdicts in version 0.1."""
PERSON = "person"


@dataclass(frozen=True)
class JudgeOptions:
    """Options of a judged comparison: the prompts, the judge and limits."""

    prompts: str
    """Path of the file of prompts, which can have any chat format."""
    judge: str = PERSON
    """URL of an OpenAI-compatible endpoint, or ``person`` for a person at the terminal."""
    model: str = ""
    """Name of the judging model at the endpoint."""
    timeout_seconds: float = 60.0
    """Maximum time for one reply of the endpoint."""
    max_prompts: int = 100
    """Maximum number of prompts, evenly spaced over the file."""
    max_answer_tokens: int = 512
    """Maximum length of an answer in tokens."""

    def __post_init__(self) -> None:
        """Raise UserError if a limit is not positive and finite."""
        for option, value, least in (
            ("--prompts", self.max_prompts, 1),
            ("--answer-tokens", self.max_answer_tokens, 1),
            ("--judge-timeout", self.timeout_seconds, 0.001),
        ):
            if not least <= value < float("inf"):
                raise UserError(f"{option}={value} must be at least {least} and finite.")


@dataclass(frozen=True)
class Candidate:
    """A model in a judged comparison."""

    name: str
    model_id: str
    """Identifier of the weights and settings, which is part of the key of cached answers."""
    answer: Answerer


def check_conversations(models: Sequence[str], options: JudgeOptions) -> None:
    """Raise UserError if the models, the judge or the prompts are invalid.

    Call this function before any long computation.
    """
    if len(models) != 2:
        raise UserError(f"--conversations compares two models, not {len(models)}; name two models.")
    _make_judge(options)
    read_prompts(options.prompts, options.max_prompts)


def judge_conversations(
    candidates: tuple[Candidate, Candidate], output: Path, options: JudgeOptions
) -> WinRate:
    """Generate missing answers, get missing verdicts, then write and print the win rate.

    The files are ``answers/NAME.jsonl``, ``judgments.jsonl`` and ``win_rate.json`` in
    ``output/conversations``. A repeated call reuses all existing answers and verdicts.
    """
    folder = output / JUDGE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: used by another process; wait until it ends, or set another --output."
    with file_lock(epath.Path(folder / ".lock"), busy, wait=False):
        pairs, dropped = _answer_pairs(candidates, folder, options)
        found = _judge_pairs(candidates, pairs, folder, options)
    write_atomic(epath.Path(folder / RESULT), json.dumps(asdict(found), indent=1).encode())
    print("\n".join(summary_lines(found)))
    if dropped:
        print(f"{dropped} prompts were left out, because the context has no room for an answer.")
    return found


def _answer_pairs(
    candidates: tuple[Candidate, Candidate], folder: Path, options: JudgeOptions
) -> tuple[list[AnswerPair], int]:
    """Return the pairs of answers, and the number of prompts that are too long for a model."""
    prompts = read_prompts(options.prompts, options.max_prompts)
    answers = [
        cached_answers(prompts, folder / "answers" / f"{one.name}.jsonl", one.model_id, one.answer)
        for one in candidates
    ]
    pairs = [
        AnswerPair(prompt, (first, second))
        for prompt, first, second in zip(prompts, *answers, strict=True)
        if first is not None and second is not None
    ]
    if not pairs:
        raise UserError(
            f"{options.prompts}: every prompt is too long for one of the models; set a file with "
            "shorter prompts, or a lower --answer-tokens."
        )
    return pairs, len(prompts) - len(pairs)


def _judge_pairs(
    candidates: tuple[Candidate, Candidate],
    pairs: list[AnswerPair],
    folder: Path,
    options: JudgeOptions,
) -> WinRate:
    judge = _make_judge(options)
    # A person would recognize a pair that is shown again in the second order.
    both_orders = isinstance(judge, EndpointJudge)
    path = folder / VERDICTS
    if not path.exists() and (folder / FORMER_VERDICTS).exists():
        (folder / FORMER_VERDICTS).rename(path)
    log = VerdictLog(path)
    questions = pending(make_questions(pairs, both_orders=both_orders), log, judge.name)
    if isinstance(judge, PersonJudge):
        judge.total = len(questions)
    judge_all(questions, judge, log, workers=WORKERS if both_orders else 1)
    names = candidates[0].name, candidates[1].name
    judgments = log.of(pairs, judge.name)
    return win_rate(names, judge.name, pairs, judgments, both_orders=both_orders)


def _make_judge(options: JudgeOptions) -> Judge:
    if options.judge == PERSON:
        return PersonJudge()
    return EndpointJudge(options.judge, options.model, options.timeout_seconds)
