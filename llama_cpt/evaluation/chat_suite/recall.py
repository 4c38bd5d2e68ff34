"""Long-context recall: questions about a number that is hidden in a long text (a needle)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import hashlib
from pathlib import Path
from random import Random
import re

import jax

from llama_cpt.evaluation.chat_suite.tasks import RECALL, SuitePrompt, SuiteTask
from llama_cpt.evaluation.scores import RECALLED
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.text_files import read_text

SHORTEST = 512
"""Length of the shortest prompt in tokens. Each further length is twice the previous length."""
LONGEST_ON_CPU = 8192
"""Default length of the longest prompt on a CPU in tokens."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Positions of the needle, as a share of the text before it."""
NEEDLES = 4
"""Number of needles per length and depth."""
ANSWER_TOKENS = 32
MAX_TEXT = 1 << 24
"""Maximum size of a text file in bytes."""
PLACES = ("Lisbon", "Nairobi", "Osaka", "Lima", "Oslo", "Cairo", "Quebec", "Hanoi", "Perth", "Riga")
_DEFAULT = Path(__file__).with_name("haystack.txt")
# A text without ends of sentences is divided into pieces.
_SENTENCE = re.compile(r"[^.!?。！？।؟\n]{1,300}[.!?。！？।؟]*[\"”’)]*")


@dataclass(frozen=True)
class Haystack:
    """Sentences in which a needle is hidden."""

    sentences: tuple[str, ...]
    digest: str


def read_haystack(path: str = "") -> Haystack:
    """Return the sentences of a text file, or of the text in this package if ``path`` is empty.

    Raises UserError if the file cannot be read, is too large, or has no sentence.
    """
    file = Path(path) if path else _DEFAULT
    try:
        if file.stat().st_size > MAX_TEXT:
            raise UserError(f"{file} has more than {MAX_TEXT >> 20} MiB; set a shorter --haystack.")
        text = read_text(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check --haystack.") from None
    found = tuple(s.strip() for s in _SENTENCE.findall(text) if any(c.isalnum() for c in s))
    if not found:
        raise UserError(f"{file} has no sentence; set --haystack to a file of text.")
    return Haystack(found, hashlib.sha256(text.encode()).hexdigest()[:16])


def lengths(context: int, longest: int | None) -> list[int]:
    """Return the powers of two from ``SHORTEST`` to the context length or to ``longest``.

    If ``longest`` is None, the longest length on a CPU is ``LONGEST_ON_CPU``, because attention
    needs memory in proportion to the square of the length.
    """
    on_cpu = jax.default_backend() == "cpu"
    limit = min(context, longest or (LONGEST_ON_CPU if on_cpu else context))
    return [SHORTEST << n for n in range(limit.bit_length()) if SHORTEST << n <= limit]


def recall_task(
    haystack: Haystack,
    encode_batch: Callable[[list[str]], Sequence[Sequence[int]]],
    count_prompt: Callable[[str], int],
    lengths: Sequence[int],
) -> SuiteTask:
    """Return the task for a model.

    ``encode_batch`` returns the token ids of texts, and ``count_prompt`` returns the number of
    tokens of the whole prompt for a user's text. Each prompt and its answer together have at most
    the number of tokens of their length.
    """
    sizes = [len(ids) for ids in encode_batch([f" {one}" for one in haystack.sentences])]
    prompts = [
        _prompt(haystack, sizes, count_prompt, length, depth, number)
        for length in lengths
        for number in range(NEEDLES)
        for depth in DEPTHS
    ]
    settings = f"{haystack.digest} {DEPTHS} {NEEDLES} {ANSWER_TOKENS}"
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return SuiteTask(RECALL, RECALLED, ANSWER_TOKENS, tuple(prompts), digest)


def is_recalled(answer: str, number: str) -> bool:
    """Return whether ``answer`` contains ``number`` as a whole number.

    Commas and spaces between groups of digits are ignored.
    """
    digits = re.sub(r"(?<=\d)[, \u00a0\u202f](?=\d{3}(?!\d))", "", answer)
    return re.search(rf"(?<!\d){number}(?!\d)", digits) is not None


def _prompt(
    haystack: Haystack,
    sizes: Sequence[int],
    count_prompt: Callable[[str], int],
    length: int,
    depth: float,
    number: int,
) -> SuitePrompt:
    rng = Random(f"{length} {depth} {number}")
    place, needle = rng.choice(PLACES), str(rng.randrange(100_000, 1_000_000))
    fact = f"The secret number of {place} is {needle}."
    first = rng.randrange(len(sizes))

    def text(count: int) -> str:
        chosen = [haystack.sentences[(first + n) % len(sizes)] for n in range(count)]
        chosen.insert(round(depth * count), fact)
        return (
            f"Read the following text.\n\n{' '.join(chosen)}\n\n"
            f"What is the secret number of {place}? Answer with the number only."
        )

    room = length - ANSWER_TOKENS
    used, count = count_prompt(text(0)), 0
    while used + sizes[(first + count) % len(sizes)] <= room:
        used += sizes[(first + count) % len(sizes)]
        count += 1
    # The sum over sentences can be less than the number of tokens of the whole text.
    while count and count_prompt(text(count)) > room:
        count -= max(count // 100, 1)
    return SuitePrompt(
        str(length),
        f"{depth:g} {number}",
        text(count),
        lambda answer: {RECALLED: is_recalled(answer, needle)},
        {"depth": depth, "needle": needle},
    )
