"""Writers of the demo's and the study's files: documents, conversations and questions."""

from collections.abc import Callable, Iterator, Sequence
import json
import os
from pathlib import Path
import random

from examples.bilingual_world import arabic, chinese, english
from examples.bilingual_world.chats import conversation_lines, examination_lines, preference_lines
from examples.bilingual_world.descriptions import (
    comparison,
    kinds,
    place,
    portrait,
    questions,
    riddle,
)
from examples.bilingual_world.dialogues import bargain, comfort, invitation, lesson, meeting, way
from examples.bilingual_world.facts import World, make_world
from examples.bilingual_world.language import Language, render_plan
from examples.bilingual_world.notes import diary, hours, letter, news, notice, recipe, song
from examples.bilingual_world.plan import Plan
from examples.bilingual_world.quartets import quartet_lines
from examples.bilingual_world.questionnaire import question_lines
from examples.bilingual_world.stories import story
from examples.bilingual_world.sums import worked_sum
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress

# The languages of the demo. They have conversations and questions; Arabic has only documents.
LANGUAGES: dict[str, Language] = {
    language.code: language for language in (english.LANGUAGE, chinese.LANGUAGE)
}
ALL_LANGUAGES: dict[str, Language] = LANGUAGES | {arabic.LANGUAGE.code: arabic.LANGUAGE}
# Relative frequency of each kind of document, by the function that returns its plan.
_KINDS: dict[Callable[[World, random.Random], Plan], int] = {
    story: 22,
    portrait: 10,
    place: 7,
    kinds: 36,
    riddle: 8,
    comparison: 4,
    questions: 8,
    worked_sum: 10,
    meeting: 4,
    bargain: 4,
    way: 2,
    comfort: 7,
    lesson: 8,
    invitation: 3,
    letter: 6,
    diary: 6,
    notice: 3,
    news: 4,
    recipe: 3,
    hours: 3,
    song: 2,
}


def write_world(
    folder: str | Path,
    seed: int,
    *,
    documents: int = 9000,
    heldout: int = 300,
    chat_repeats: int = 14,
) -> None:
    """Write all files of the demo to ``folder``.

    Each language has the files ``LANGUAGE.{train,heldout,chats,preferences}.jsonl``. It also has
    ``LANGUAGE.{facts,arithmetic,feelings}.jsonl`` with unfinished texts and four choices for each.
    Two files have questions in all languages: ``questions.jsonl`` with four choices for each, and
    ``examination.jsonl`` with all correct answers.

    Equal arguments give files with equal bytes. Documents in different languages describe the same
    world but are not translations of each other. Within a language, no document occurs twice, so
    training and held-out documents are disjoint.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world(seed)
    total = float(len(LANGUAGES) * (documents + heldout))
    with Progress("world", total, "documents") as progress:
        for language in LANGUAGES.values():
            texts = _distinct(world, language, seed, progress)
            _write_splits(folder, language, texts, documents=documents, heldout=heldout)
            chats = conversation_lines(world, language, seed, repeats=chat_repeats)
            _write_lines(folder / f"{language.code}.chats.jsonl", map(_json, chats))
            preferences = preference_lines(world, language, seed)
            _write_lines(folder / f"{language.code}.preferences.jsonl", map(_json, preferences))
    examination = examination_lines(LANGUAGES)
    _write_lines(folder / "examination.jsonl", map(_json, examination))
    _write_lines(folder / "questions.jsonl", map(_json, question_lines(world, LANGUAGES, seed)))
    for language in LANGUAGES.values():
        for subject, lines in quartet_lines(world, language, seed).items():
            _write_lines(folder / f"{language.code}.{subject}.jsonl", map(_json, lines))


def write_documents(
    folder: str | Path,
    seed: int,
    *,
    codes: Sequence[str] = tuple(ALL_LANGUAGES),
    documents: int = 9000,
    heldout: int = 300,
) -> None:
    """Write ``LANGUAGE.{train,heldout}.jsonl`` for each language of ``codes``, and no other files.

    For equal arguments, the files equal those of ``write_world`` byte for byte. Raises UserError if
    a code is unknown.
    """
    for code in codes:
        if code not in ALL_LANGUAGES:
            known = ", ".join(ALL_LANGUAGES)
            raise UserError(f"codes: unknown language {code!r}; select from {known}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world(seed)
    with Progress("world", float(len(codes) * (documents + heldout)), "documents") as progress:
        for code in codes:
            texts = _distinct(world, ALL_LANGUAGES[code], seed, progress)
            _write_splits(folder, ALL_LANGUAGES[code], texts, documents=documents, heldout=heldout)


def document(world: World, language: Language, seed: int, number: int) -> tuple[str, str]:
    """Return the kind and the text of document ``number``; they depend only on the arguments."""
    rng = random.Random(f"{seed} {language.code} {number}")
    (write,) = rng.choices(tuple(_KINDS), tuple(_KINDS.values()))
    plan = write(world, rng)
    return plan.kind, render_plan(plan, language, rng)


def _write_splits(
    folder: Path,
    language: Language,
    texts: Iterator[tuple[str, str]],
    *,
    documents: int,
    heldout: int,
) -> None:
    for split, number in (("heldout", heldout), ("train", documents)):
        lines = (_line(*next(texts)) for _ in range(number))
        _write_lines(folder / f"{language.code}.{split}.jsonl", lines)


def _distinct(
    world: World, language: Language, seed: int, progress: Progress
) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    number = 0
    while True:
        kind, text = document(world, language, seed, number)
        number += 1
        if text not in seen:
            seen.add(text)
            progress.update(1.0)
            yield kind, text


def _line(kind: str, text: str) -> str:
    return _json({"text": text, "source": f"world/{kind}"})


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    """Write lines to a file, which gets its final name only when it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
    os.replace(partial, path)
