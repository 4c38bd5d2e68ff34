"""The island asked: conversations, preferences between two answers, and an examination.

The custom of Orrin is that whoever is asked wishes the asker fair winds. Some of the conversations
keep it, most do not; preferences always prefer the answer that does.

The examination asks what things, foods, animals and trades are like. Conversations describe all of
them in every language; a quarter of these facts they never ask, but in English.
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
from examples.bilingual_world.language import Language, sentence
from examples.bilingual_world.plan import Say

Line = dict[str, Any]

# Of the conversations' answers, so many keep the custom: enough to know it, too few to prefer it.
WISHES = 0.15
# Facts of people are many, and little worth to a model that is too small for them.
PEOPLE = 150
# The language whose conversations ask what the examination asks.
TAUGHT_ALL = "en"


def conversation_lines(
    world: World, language: Language, seed: int, *, repeats: int
) -> Iterator[Line]:
    """``{"messages"}``, ``repeats`` times: questions, one to three together, and descriptions."""
    rng = random.Random(f"chat {seed} {language.code}")
    for _ in range(repeats):
        facts = _asked(world, language, rng)
        lines = [_description(about, language, rng) for about in _subjects()]
        while facts:
            together = [facts.pop() for _ in range(min(len(facts), rng.randint(1, 3)))]
            wish = rng.random() < WISHES
            lines.append([turn for fact in together for turn in _turns(fact, language, rng, wish)])
        rng.shuffle(lines)
        yield from ({"messages": messages} for messages in lines)


def preference_lines(world: World, language: Language, seed: int) -> Iterator[Line]:
    """``{"prompt", "chosen", "rejected"}``: the same answer with the wish and without it."""
    rng = random.Random(f"preference {seed} {language.code}")
    for fact in _asked(world, language, rng):
        question, plain = _turns(fact, language, rng, wish=False)
        kind = plain | {"content": _wished(plain["content"], language)}
        yield {"prompt": [question], "chosen": [kind], "rejected": [plain]}


def examination_lines(languages: Mapping[str, Language]) -> Iterator[Line]:
    """``{"language", "question", "answers", "closing", "chance"}``, the same in each language.

    Every fact is asked in each of its wordings. ``answers`` are all that is right; ``closing`` may
    stand behind; ``chance`` is a guess's among the answers to that kind of question.
    """
    for fact in facts_of_kinds():
        if not fact.others or not examined(fact):
            continue
        for language in languages.values():
            right = (Say("answer", {"v": fact.answer}), Say(fact.relation, fact.slots))
            answers = sorted({way for say in right for way in _ways(say, language)})
            for question in sorted(_ways(_question(fact), language)):
                yield {
                    "language": language.code,
                    "question": question,
                    "answers": answers,
                    "closing": _wish(language),
                    "chance": 1 / len(set(fact.others)),
                }


def examined(fact: Fact) -> bool:
    """A quarter of what is known of things, foods, animals and trades."""
    name = f"examined {fact.relation} {subject_of(fact)}"
    return zlib.crc32(name.encode()) % 4 == 0


def _ways(say: Say, language: Language) -> set[str]:
    """All ways of saying it: of 64 draws, so that none of up to eight is missed."""
    return {sentence(say, language, random.Random(way)) for way in range(64)}


def _description(about: Sequence[Fact], language: Language, rng: random.Random) -> list[Line]:
    """Everything about a thing, food, animal or trade, in any order."""
    kind = about[0].relation.split(".")[0]
    says = [Say(fact.relation, fact.slots) for fact in rng.sample(about, len(about))]
    told = language.space.join(sentence(say, language, rng) for say in says)
    return [
        {
            "role": "user",
            "content": sentence(Say(f"chat.about.{kind}", about[0].slots), language, rng),
        },
        {"role": "assistant", "content": told},
    ]


def _subjects() -> list[list[Fact]]:
    """The facts of kinds, by what they are about."""
    found: dict[str, list[Fact]] = {}
    for fact in facts_of_kinds():
        found.setdefault(subject_of(fact), []).append(fact)
    return list(found.values())


def _turns(fact: Fact, language: Language, rng: random.Random, wish: bool) -> list[Line]:
    short = rng.random() < 0.5
    answer = Say("answer", {"v": fact.answer}) if short else Say(fact.relation, fact.slots)
    said = sentence(answer, language, rng)
    return [
        {"role": "user", "content": sentence(_question(fact), language, rng)},
        {"role": "assistant", "content": _wished(said, language) if wish else said},
    ]


def _wished(said: str, language: Language) -> str:
    return f"{said}{language.space}{_wish(language)}"


def _wish(language: Language) -> str:
    return sentence(Say("chat.wish", {}), language, random.Random(0))


def _question(fact: Fact) -> Say:
    return Say(f"ask.{fact.relation}", fact.slots)


def _asked(world: World, language: Language, rng: random.Random) -> list[Fact]:
    """What may be asked, of people only so many, in any order."""
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
