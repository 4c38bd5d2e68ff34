"""Questions with choices, for evaluation: facts that training states but never asks."""

from collections.abc import Iterator, Mapping
import random

from examples.bilingual_world.facts import World, all_facts, never_asked
from examples.bilingual_world.language import Language, sentence
from examples.bilingual_world.plan import Say


def question_lines(
    world: World, languages: Mapping[str, Language], seed: int
) -> Iterator[dict[str, object]]:
    """``{"language", "question", "answer", "choices"}``, the same questions in each language."""
    for number, fact in enumerate(all_facts(world)):
        if not fact.others or not never_asked(fact):
            continue
        wrong = [value for value in fact.others if str(value) != str(fact.answer)]
        choices = [fact.answer, *random.Random(f"choices {seed} {number}").sample(wrong, 3)]
        random.Random(f"order {seed} {number}").shuffle(choices)
        for language in languages.values():
            rng = random.Random(f"question {seed} {number}")
            shown = [sentence(Say("answer", {"v": value}), language, rng) for value in choices]
            yield {
                "language": language.code,
                "question": sentence(Say(f"ask.{fact.relation}", fact.slots), language, rng),
                "answer": sentence(Say("answer", {"v": fact.answer}), language, rng),
                "choices": shown,
            }
