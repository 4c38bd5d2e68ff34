"""Multiple-choice questions for base models: unfinished texts with four continuations each.

Four questions of the same kind form a quartet. They share their four choices, and each choice is
the correct answer to one of the questions. A model that ignores the question therefore answers one
question in four correctly, even if some answers are more common than the rest in training text.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations, product
import os
import random

from examples.bilingual_world import lists
from examples.bilingual_world.facts import Fact, World, all_facts, subject_of
from examples.bilingual_world.language import Language, render_plan, render_sentence
from examples.bilingual_world.plan import Count, Mention, Plan, Sentence, Slots, Spoken
from examples.bilingual_world.sums import COUNTED, step

Line = dict[str, object]
Table = list[list[Plan]]
"""The plans of a quartet. Entry [i][j] is question i followed by the answer to question j."""
RELATIONS = (
    ("thing.material",),
    ("job.place",),
    ("food.taste", "food.colour"),
    ("food.kind", "food.taste"),
    ("animal.eats", "animal.lives"),
)
"""Groups of relations. The four questions of a quartet use the relations of one group.

Relations of people and towns are left out because a small model cannot learn their facts.
"""
REASONS = {
    "comfort.because": lists.SAD_CAUSES,
    "letter.sad": lists.SAD_CAUSES,
    "letter.glad": lists.GLAD_CAUSES,
}
# Numbers of quartets per kind. Answers to the kinds with FEW quartets depend on the whole text, and
# answers to the kinds with MANY quartets depend on the last words only.
FEW, MANY = 12, 48


def _less(number: int, other: int) -> bool:
    return other < number - 1


def _small(number: int, other: int) -> bool:
    return other <= 12


def _shares(number: int, children: int) -> bool:
    """Return whether training documents contain the division of ``number`` by ``children``.

    They contain divisions by at most 9 children with at most 12 things for each child.
    """
    return children < 10 and number % children == 0 and number // children <= 12


# Pairs of stories with the same two numbers and different sums: the operation of each story, the
# range of the first number, and the condition on both numbers.
_PAIRS = (
    ({"giving": "add", "losing": "subtract"}, range(12, 61), _less),
    ({"giving": "add", "gathering": "subtract"}, range(12, 61), _less),
    ({"walking": "add", "rows": "multiply"}, range(2, 13), _small),
    ({"losing": "subtract", "sharing": "divide"}, range(12, 91), _shares),
)


def quartet_lines(world: World, language: Language, seed: int) -> dict[str, Iterator[Line]]:
    """Return the questions by subject: ``facts``, ``arithmetic`` and ``feelings``.

    A question is a dict ``{"kind", "text", "choices", "answer"}``. ``text`` is the unfinished text,
    ``choices`` has four continuations, and ``answer`` is the index of the correct continuation.
    """
    tables = {
        "facts": _facts(world, seed),
        "arithmetic": _sums(world, seed),
        "feelings": chain(_feelings(world, seed), _moods(world, seed)),
    }
    lines = {
        subject: _lines(found, language, f"{seed} {subject}") for subject, found in tables.items()
    }
    return lines | {"arithmetic": chain(lines["arithmetic"], _step_lines(language, seed))}


def _lines(tables: Iterable[Table], language: Language, name: str) -> Iterator[Line]:
    for number, table in enumerate(tables):
        beginnings, ends = _opened(table, language, f"{name} {number}")
        kinds = [row[0].kind for row in table]
        yield from _question_lines(kinds, beginnings, ends, random.Random(f"{name} {number}"))


def _question_lines(
    kinds: Sequence[str], beginnings: Sequence[str], ends: Sequence[str], rng: random.Random
) -> Iterator[Line]:
    order = rng.sample(range(4), 4)
    choices = [ends[answer] for answer in order]
    for question, (kind, text) in enumerate(zip(kinds, beginnings, strict=True)):
        yield {"kind": kind, "text": text, "choices": choices, "answer": order.index(question)}


def _opened(table: Table, language: Language, name: str) -> tuple[list[str], list[str]]:
    """Return the texts of the four questions and the four choices that the questions share.

    The function draws wordings until the four texts differ, the four choices differ, and all
    questions have the same choices. Raises ValueError if 64 draws give no suitable wording.
    """
    for attempt in range(64):
        split = [
            _split([_plan_text(plan, language, f"{name} {attempt}") for plan in row], language)
            for row in table
        ]
        beginnings, ends = zip(*split, strict=True)
        apart = len(set(beginnings)) == len(set(ends[0])) == 4
        if apart and len(set(ends)) == 1 and "\n" not in "".join(ends[0]):
            return list(beginnings), list(ends[0])
    raise ValueError(
        f"{table[0][0].kind}: no wording in {language.code} separates the four questions"
    )


def _plan_text(plan: Plan, language: Language, name: str) -> str:
    """Return the text of a plan. The wording of each paragraph is drawn independently."""
    return "\n".join(
        render_plan(Plan(plan.kind, (paragraph,)), language, random.Random(f"{name} {number}"))
        for number, paragraph in enumerate(plan.paragraphs)
    )


def _split(texts: Sequence[str], language: Language) -> tuple[str, tuple[str, ...]]:
    """Return the common beginning of the texts, up to the end of a word, and the rest of each."""
    common = os.path.commonprefix(texts)
    common = common[: common.rfind(language.space)] if language.space else common.rstrip()
    return common, tuple(text[len(common) + len(language.space) :] for text in texts)


def _facts(world: World, seed: int) -> Iterator[Table]:
    """Yield quartets about four subjects, with one fact each, or two subjects, with two each."""
    known = all_facts(world)
    for relations in RELATIONS:
        by_subject: dict[str, list[Fact]] = {}
        for fact in known:
            if fact.relation in relations:
                by_subject.setdefault(subject_of(fact), []).append(fact)
        rng = random.Random(f"{seed} {relations}")
        subjects = rng.sample(sorted(by_subject), len(by_subject))
        fours = _fours([by_subject[name][0] for name in subjects])
        if len(relations) == 2:
            fours = _twos([by_subject[name] for name in subjects])
        for four in fours:
            yield [[_stated(fact, other.answer) for other in four] for fact in four]


def _fours(facts: Sequence[Fact]) -> Iterator[list[Fact]]:
    """Yield groups of four facts with different answers until fewer than four answers are left."""
    by_answer: dict[str, list[Fact]] = {}
    for fact in facts:
        by_answer.setdefault(str(fact.answer), []).append(fact)
    while len([one for one in by_answer.values() if one]) >= 4:
        yield [one.pop() for one in sorted(by_answer.values(), key=len, reverse=True)[:4]]


def _twos(subjects: Sequence[list[Fact]]) -> Iterator[list[Fact]]:
    """Yield the four facts of two subjects if their answers differ.

    Each set of four answers occurs once. A subject is combined with one of the next three subjects.
    """
    seen: set[frozenset[object]] = set()
    for place, facts in enumerate(subjects):
        for other in subjects[place + 1 : place + 4]:
            answers = frozenset(fact.answer for fact in (*facts, *other))
            if len(answers) == 4 and answers not in seen:
                seen.add(answers)
                yield [*facts, *other]
                break


def _stated(fact: Fact, answer: object) -> Plan:
    slots = {name: answer if v == fact.answer else v for name, v in fact.slots.items()}
    return Plan(fact.relation, ((Sentence(fact.relation, slots),),))


def _sums(world: World, seed: int) -> Iterator[Table]:
    """Yield quartets about the calculation that a story with numbers requires."""
    for signs, firsts, suits in _PAIRS:
        fitting = {x: [y for y in range(2, 41) if suits(x, y)] for x in firsts}
        for number in range(FEW):
            rng = random.Random(f"{seed} {' '.join(signs)} {number}")
            x = rng.choice([x for x, others in fitting.items() if len(others) > 1])
            others, cast = rng.sample(fitting[x], 2), _cast(world, rng)
            stories = [(name, cast | _numbers(x, y, cast["x"])) for name in signs for y in others]
            steps = [step(x, sign, y) for sign in signs.values() for y in others]
            yield [[_problem(*story, one) for one in steps] for story in stories]


def _step_lines(language: Language, seed: int) -> Iterator[Line]:
    """Yield questions that name a step of a calculation; the correct answer is that step."""
    for number in range(MANY):
        rng = random.Random(f"{seed} steps {number}")
        (a, b), (c, d), (e, f) = (rng.sample(range(2, 10), 2) for _ in range(3))
        steps = (
            Sentence("drill.tens", {"x": 10 * a, "y": 10 * b, "z": 10 * (a + b)}),
            Sentence("drill.ones", {"x": c, "y": d, "z": c + d}),
            step(10 * e + f, "subtract", 10 + f),
            step(e * f, "divide", f),
        )
        # The longest wording is one that names the step.
        texts = [
            max(
                (render_sentence(one, language, random.Random(draw)) for draw in range(16)), key=len
            )
            for one in steps
        ]
        at = [next(place for place, sign in enumerate(text) if sign.isdigit()) for text in texts]
        beginnings = [text[:place].rstrip() for text, place in zip(texts, at, strict=True)]
        ends = [text[place:] for text, place in zip(texts, at, strict=True)]
        yield from _question_lines([one.key for one in steps], beginnings, ends, rng)


def _cast(world: World, rng: random.Random) -> Slots:
    one, other = rng.sample(world.people, 2)
    towns = dict(zip("tuw", rng.sample(lists.TOWNS, 3), strict=True))
    return {"a": Mention(one), "b": Mention(other), "x": rng.choice(COUNTED)} | towns


def _numbers(first: int, second: int, thing: str) -> Slots:
    """Return two numbers as values for the placeholders of all stories."""
    counted = {"f": Count(first, thing), "g": Count(second, thing), "c": Count(second, "child")}
    return {"n": first, "m": second} | counted


def _problem(name: str, slots: Slots, worked: Sentence) -> Plan:
    problem = (Sentence(f"sum.{name}", slots), Sentence(f"sum.{name}.ask", slots))
    return Plan(f"sum.{name}", (problem, (worked,)))


def _feelings(world: World, seed: int) -> Iterator[Table]:
    """Yield quartets about the causes of feelings, then quartets about a friend's reply."""
    for key, causes in REASONS.items():
        rng = random.Random(f"{seed} {key}")
        for feelings in _fours_of(causes.values(), FEW, rng):
            four = [rng.choice([c for c in causes if causes[c] == e]) for e in feelings]
            cast = _friends(world, rng)
            yield [
                [Plan(key, ((_felt(key, feeling, cause, cast),),)) for cause in four]
                for feeling in feelings
            ]
    rng = random.Random(f"{seed} reply")
    for four in _fours_of(lists.SAD_CAUSES, FEW, rng):
        cast = _friends(world, rng)
        yield [[_reply(one, other, cast) for other in four] for one in four]


def _moods(world: World, seed: int) -> Iterator[Table]:
    """Yield quartets about the feelings that events cause, two sad and two glad feelings each."""
    rng = random.Random(f"{seed} moods")
    reasons = (("comfort.because", lists.SAD_CAUSES), ("letter.glad", lists.GLAD_CAUSES))
    twos = (list(combinations(sorted(set(causes.values())), 2)) for _, causes in reasons)
    for sad, glad in rng.sample(list(product(*twos)), MANY):
        cast = _friends(world, rng)
        happened = [
            (key, rng.choice([cause for cause in causes if causes[cause] == feeling]))
            for (key, causes), two in zip(reasons, (sad, glad), strict=True)
            for feeling in two
        ]
        yield [
            [Plan(key, ((_felt(key, feeling, cause, cast),),)) for feeling in (*sad, *glad)]
            for key, cause in happened
        ]


def _fours_of(names: Iterable[str], number: int, rng: random.Random) -> list[tuple[str, ...]]:
    """Return ``number`` different combinations of four of the names."""
    return rng.sample(list(combinations(sorted(set(names)), 4)), number)


def _felt(key: str, feeling: str, cause: str, cast: Slots) -> Sentence:
    return Sentence(key, cast | {"e": feeling, "why": Sentence(f"cause.{cause}", cast)})


def _reply(cause: str, other: str, cast: Slots) -> Plan:
    """Return the plan of a dialogue about a person's feeling.

    The person states ``cause``, and the friend's reply refers to the cause ``other``.
    """
    feeling = lists.SAD_CAUSES[cause]
    ask, understand = (
        Sentence(f"comfort.{n}", cast | {"e": feeling}) for n in ("ask", "understand")
    )
    turns = (
        _spoken(cast, "b", ask),
        _spoken(cast, "you", _felt("comfort.because", feeling, cause, cast)),
        _spoken(cast, "b", understand, Sentence(f"comfort.{other}", cast)),
    )
    return Plan("comfort.reply", turns)


def _spoken(cast: Slots, who: str, *words: Sentence) -> tuple[Sentence, ...]:
    slots = {"a": Mention(cast[who].person), "words": Spoken(words)}
    return (Sentence("speech.script", slots),)


def _friends(world: World, rng: random.Random) -> Slots:
    """Return placeholder values for a random person, as I and as you, and the person's friend."""
    person = rng.choice(world.people)
    return {
        "a": Mention(person, "i"),
        "you": Mention(person, "you"),
        "b": Mention(world.person(person.friend)),
        "x": rng.choice(lists.THINGS),
        "k": person.pet,
        "q": person.pet_name,
        "h": rng.choice(lists.HOBBIES),
        "out": rng.choice(lists.OUTDOORS),
        "f": rng.choice(lists.FOODS),
    }
