"""Multiple-choice questions about facts that no training question covers."""

from collections.abc import Iterator, Mapping
import random

from examples.bilingual_world.facts import World, all_facts, never_asked
from examples.bilingual_world.language import Language, render_sentence
from examples.bilingual_world.plan import Sentence


def question_lines(
    world: World, languages: Mapping[str, Language], seed: int
) -> Iterator[dict[str, object]]:
    """Yield a dict ``{"language", "question", "answer", "choices"}`` per question and language."""
    for number, fact in enumerate(all_facts(world)):
        if not fact.others or not never_asked(fact):
            continue
        wrong = [value for value in fact.others if str(value) != str(fact.answer)]
        choices = [fact.answer, *random.Random(f"choices {seed} {number}").sample(wrong, 3)]
        random.Random(f"order {seed} {number}").shuffle(choices)
        for language in languages.values():
            rng = random.Random(f"question {seed} {number}")
            shown = [
                render_sentence(Sentence("answer", {"v": value}), language, rng)
                for value in choices
            ]
            yield {
                "language": language.code,
                "question": render_sentence(
                    Sentence(f"ask.{fact.relation}", fact.slots), language, rng
                ),
                "answer": render_sentence(Sentence("answer", {"v": fact.answer}), language, rng),
                "choices": shown,
            }
