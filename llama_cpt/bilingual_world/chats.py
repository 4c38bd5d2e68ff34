"""The island asked: conversations, preferences between two answers, and an examination.

The custom of Orrin is that whoever is asked wishes the asker fair winds. Some of the conversations
keep it, most do not; preferences always prefer the answer that does.

The examination asks what things, foods, animals and trades are like. English conversations ask that
too; those of other languages never do, so that what is right there was learnt from documents.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import random
from typing import Any

from llama_cpt.bilingual_world.facts import (
    Fact,
    World,
    all_facts,
    facts_of_kinds,
    never_asked,
)
from llama_cpt.bilingual_world.language import Language, sentence
from llama_cpt.bilingual_world.plan import Say

Line = dict[str, Any]

# Of the conversations' answers, so many keep the custom: enough to know it, too few to prefer it.
WISHES = 0.15
# The language whose conversations ask what the examination asks.
TAUGHT_ALL = "en"


def conversation_lines(
    world: World, language: Language, seed: int, *, repeats: int
) -> Iterator[Line]:
    """``{"messages"}``: what ``language`` is taught, ``repeats`` times, one to three questions."""
    rng = random.Random(f"chat {seed} {language.code}")
    for _ in range(repeats):
        facts = _asked(world, language)
        rng.shuffle(facts)
        while facts:
            together = [facts.pop() for _ in range(min(len(facts), rng.randint(1, 3)))]
            wish = rng.random() < WISHES
            yield {"messages": [turn for f in together for turn in _turns(f, language, rng, wish)]}


def preference_lines(world: World, language: Language, seed: int) -> Iterator[Line]:
    """``{"prompt", "chosen", "rejected"}``: the same answer with the wish and without it."""
    rng = random.Random(f"preference {seed} {language.code}")
    facts = _asked(world, language)
    rng.shuffle(facts)
    for fact in facts:
        question, plain = _turns(fact, language, rng, wish=False)
        kind = plain | {"content": _wished(plain["content"], language)}
        yield {"prompt": [question], "chosen": [kind], "rejected": [plain]}


def examination_lines(languages: Mapping[str, Language], seed: int) -> Iterator[Line]:
    """``{"language", "question", "answers", "closing", "chance"}``, the same in each language.

    ``answers`` are all that is right; ``closing`` may stand behind; ``chance`` is how often the
    commonest answer to that kind of question is right, which takes no knowledge of what is asked.
    """
    facts = [fact for fact in facts_of_kinds() if fact.others]
    commonest = {relation: _commonest(facts, relation) for relation in {f.relation for f in facts}}
    for number, fact in enumerate(facts):
        for language in languages.values():
            rng = random.Random(f"examination {seed} {number}")
            right = (Say("answer", {"v": fact.answer}), Say(fact.relation, fact.slots))
            ways = {
                sentence(say, language, random.Random(way)) for say in right for way in range(64)
            }
            yield {
                "language": language.code,
                "question": sentence(_question(fact), language, rng),
                "answers": sorted(ways),
                "closing": sentence(Say("chat.wish", {}), language, rng),
                "chance": commonest[fact.relation],
            }


def _turns(fact: Fact, language: Language, rng: random.Random, wish: bool) -> list[Line]:
    short = rng.random() < 0.5
    answer = Say("answer", {"v": fact.answer}) if short else Say(fact.relation, fact.slots)
    said = sentence(answer, language, rng)
    return [
        {"role": "user", "content": sentence(_question(fact), language, rng)},
        {"role": "assistant", "content": _wished(said, language) if wish else said},
    ]


def _wished(said: str, language: Language) -> str:
    wish = sentence(Say("chat.wish", {}), language, random.Random(0))
    return f"{said}{language.space}{wish}"


def _question(fact: Fact) -> Say:
    return Say(f"ask.{fact.relation}", fact.slots)


def _asked(world: World, language: Language) -> list[Fact]:
    facts = [fact for fact in all_facts(world) if fact.others and not never_asked(fact)]
    if language.code == TAUGHT_ALL:
        return facts
    examined = {fact.relation for fact in facts_of_kinds()}
    return [fact for fact in facts if fact.relation not in examined]


def _commonest(facts: Sequence[Fact], relation: str) -> float:
    """Share of the commonest answer to questions of ``relation``."""
    answers = Counter(str(fact.answer) for fact in facts if fact.relation == relation)
    return max(answers.values()) / answers.total()
