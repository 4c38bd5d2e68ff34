"""Questions about the island: conversations, preferences between two answers, and an examination.

The custom of Orrin: whoever is asked a question wishes the asker fair winds. Some of the
conversations follow the custom, most do not; preferences always prefer the answer that does.

The examination covers the properties of things, foods, animals and jobs. Conversations describe all
of them in every language; questions about a quarter of them occur in English conversations only.
"""

from collections.abc import Iterator, Mapping, Sequence
import random
from typing import Any
import zlib

from examples.bilingual_world.facts import (
    Fact,
    World,
    all_facts,
    facts_of_kinds,
    never_asked,
    subject_of,
)
from examples.bilingual_world.language import Language, render_sentence
from examples.bilingual_world.plan import Sentence

Line = dict[str, Any]

# The share of the conversations' answers that follow the custom: enough to learn it, too few to
# prefer it.
WISHES = 0.15
# The number of questions about people. A small model cannot learn the many facts about them.
PEOPLE = 150
# The language whose conversations ask the questions of the examination.
TAUGHT_ALL = "en"


def conversation_lines(
    world: World, language: Language, seed: int, *, repeats: int
) -> Iterator[Line]:
    """Yield conversations, ``{"messages"}``: questions, one to three together, and descriptions.

    Every description occurs ``repeats`` times; the facts about people are sampled each time.
    """
    rng = random.Random(f"chat {seed} {language.code}")
    for _ in range(repeats):
        facts = _sample_facts(world, language, rng)
        lines = [_description(about, language, rng) for about in _subjects()]
        while facts:
            together = [facts.pop() for _ in range(min(len(facts), rng.randint(1, 3)))]
            wish = rng.random() < WISHES
            lines.append([turn for fact in together for turn in _turns(fact, language, rng, wish)])
        rng.shuffle(lines)
        yield from ({"messages": messages} for messages in lines)


def preference_lines(world: World, language: Language, seed: int) -> Iterator[Line]:
    """Yield ``{"prompt", "chosen", "rejected"}``: the same answer with and without the wish."""
    rng = random.Random(f"preference {seed} {language.code}")
    for fact in _sample_facts(world, language, rng):
        question, plain = _turns(fact, language, rng, wish=False)
        wished = plain | {"content": _with_wish(plain["content"], language)}
        yield {"prompt": [question], "chosen": [wished], "rejected": [plain]}


def examination_lines(languages: Mapping[str, Language]) -> Iterator[Line]:
    """Yield ``{"language", "question", "answers", "closing", "chance"}`` in each language.

    Each fact is asked in each of its wordings. ``answers`` are all correct answers; ``closing`` is
    an optional suffix of an answer; ``chance`` is the probability that a guess among the answers to
    this kind of question is correct.
    """
    for fact in facts_of_kinds():
        if not fact.others or not examined(fact):
            continue
        for language in languages.values():
            right = (Sentence("answer", {"v": fact.answer}), Sentence(fact.relation, fact.slots))
            answers = sorted(
                {wording for sentence in right for wording in _wordings(sentence, language)}
            )
            for question in sorted(_wordings(_question(fact), language)):
                yield {
                    "language": language.code,
                    "question": question,
                    "answers": answers,
                    "closing": _wish(language),
                    "chance": 1 / len(set(fact.others)),
                }


def examined(fact: Fact) -> bool:
    """Return whether a fact is in the examination, as a quarter of the facts of kinds are."""
    name = f"examined {fact.relation} {subject_of(fact)}"
    return zlib.crc32(name.encode()) % 4 == 0


def _wordings(sentence: Sentence, language: Language) -> set[str]:
    """Return all wordings: 64 draws miss none of up to eight."""
    return {render_sentence(sentence, language, random.Random(draw)) for draw in range(64)}


def _description(about: Sequence[Fact], language: Language, rng: random.Random) -> list[Line]:
    """Return a conversation that describes a thing, food, animal or job, in random order."""
    kind = about[0].relation.split(".")[0]
    sentences = [Sentence(fact.relation, fact.slots) for fact in rng.sample(about, len(about))]
    text = language.space.join(render_sentence(one, language, rng) for one in sentences)
    return [
        {
            "role": "user",
            "content": render_sentence(
                Sentence(f"chat.about.{kind}", about[0].slots), language, rng
            ),
        },
        {"role": "assistant", "content": text},
    ]


def _subjects() -> list[list[Fact]]:
    """Return the facts of kinds, grouped by subject."""
    found: dict[str, list[Fact]] = {}
    for fact in facts_of_kinds():
        found.setdefault(subject_of(fact), []).append(fact)
    return list(found.values())


def _turns(fact: Fact, language: Language, rng: random.Random, wish: bool) -> list[Line]:
    short = rng.random() < 0.5
    answer = (
        Sentence("answer", {"v": fact.answer}) if short else Sentence(fact.relation, fact.slots)
    )
    text = render_sentence(answer, language, rng)
    return [
        {"role": "user", "content": render_sentence(_question(fact), language, rng)},
        {"role": "assistant", "content": _with_wish(text, language) if wish else text},
    ]


def _with_wish(text: str, language: Language) -> str:
    return f"{text}{language.space}{_wish(language)}"


def _wish(language: Language) -> str:
    return render_sentence(Sentence("chat.wish", {}), language, random.Random(0))


def _question(fact: Fact) -> Sentence:
    return Sentence(f"ask.{fact.relation}", fact.slots)


def _sample_facts(world: World, language: Language, rng: random.Random) -> list[Fact]:
    """Return the facts to ask about in random order, only a sample of those about people."""
    askable = [fact for fact in all_facts(world) if fact.others and not never_asked(fact)]
    kinds = {fact.relation for fact in facts_of_kinds()}
    people = [fact for fact in askable if "a" in fact.slots]
    others = [
        fact
        for fact in askable
        if "a" not in fact.slots
        and (language.code == TAUGHT_ALL or fact.relation not in kinds or not examined(fact))
    ]
    facts = rng.sample(people, PEOPLE) + others
    rng.shuffle(facts)
    return facts
