"""Chat data about the invented island: conversations, preference pairs and an examination.

By a custom of the island, a person who answers a question wishes the asker fair winds. A small
share of the answers in conversations follow the custom. In a preference pair, the chosen answer
follows the custom and the rejected answer does not.

The examination asks about the properties of things, foods, animals and jobs. Conversations describe
all of these properties in every language. Questions of the examination occur only in English
conversations; they cover a quarter of the properties.
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

# Share of the answers in conversations that follow the custom. It is large enough that a model
# learns the custom in SFT, and so small that the model does not prefer it before DPO.
WISHES = 0.15
# Number of facts about people that are sampled for questions. A small model cannot learn all facts
# about people.
PEOPLE = 150
# Code of the only language with questions of the examination in its conversations.
TAUGHT_ALL = "en"


def conversation_lines(
    world: World, language: Language, seed: int, *, repeats: int
) -> Iterator[Line]:
    """Yield one dict ``{"messages"}`` per conversation.

    A conversation has one to three questions with answers, or it describes one thing, food, animal
    or job. Every description occurs ``repeats`` times. Each repetition samples new facts about
    people.
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
    """Yield one dict ``{"prompt", "chosen", "rejected"}`` per preference pair.

    The chosen answer is the rejected answer followed by the wish for fair winds.
    """
    rng = random.Random(f"preference {seed} {language.code}")
    for fact in _sample_facts(world, language, rng):
        question, plain = _turns(fact, language, rng, wish=False)
        wished = plain | {"content": _with_wish(plain["content"], language)}
        yield {"prompt": [question], "chosen": [wished], "rejected": [plain]}


def examination_lines(languages: Mapping[str, Language]) -> Iterator[Line]:
    """Yield one dict ``{"language", "question", "answers", "closing", "chance"}`` per question.

    Each fact has one question per language and wording. ``answers`` has all correct answers, and
    ``closing`` is a suffix that a correct answer can have. ``chance`` is the probability that a
    random guess among the possible answers to this kind of question is correct.
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
    """Return whether the examination asks about ``fact``.

    ``fact`` is about a thing, food, animal or job; a hash selects a quarter of these facts.
    """
    name = f"examined {fact.relation} {subject_of(fact)}"
    return zlib.crc32(name.encode()) % 4 == 0


def _wordings(sentence: Sentence, language: Language) -> set[str]:
    """Return all wordings of a sentence. There are at most eight, and 64 random draws find them."""
    return {render_sentence(sentence, language, random.Random(draw)) for draw in range(64)}


def _description(about: Sequence[Fact], language: Language, rng: random.Random) -> list[Line]:
    """Return a conversation that states the facts ``about`` one subject in random order."""
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
    """Return one list of facts for each thing, food, animal and job."""
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
    """Return the facts to ask about, in random order.

    The facts about people are a random sample of PEOPLE facts. Facts of the examination are left
    out in all languages except TAUGHT_ALL.
    """
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
