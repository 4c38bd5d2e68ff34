"""Plans of documents that describe or compare people, towns and things, or ask about them."""

from collections.abc import Sequence
import random

from examples.bilingual_world import lists
from examples.bilingual_world.facts import (
    Fact,
    World,
    direction,
    distance,
    facts_of_kinds,
    facts_of_person,
    facts_of_town,
    never_asked,
    subject_of,
)
from examples.bilingual_world.plan import Count, Mention, Plan, Sentence, Spoken

_KINDS = facts_of_kinds()


def portrait(world: World, rng: random.Random) -> Plan:
    """Return the plan of a description of a person with four to eight facts."""
    person = rng.choice(world.people)
    facts = facts_of_person(world, person, "again")
    chosen = rng.sample(facts, rng.randint(4, min(8, len(facts))))
    first = Sentence("portrait.start", {"a": Mention(person, "full"), "t": person.home})
    last = Sentence("portrait.end", {"a": Mention(person), "s": rng.choice(lists.SPOTS)})
    body = _named_now_and_then(chosen, rng)
    return Plan("portrait", ((first, *body, *([last] if rng.random() < 0.6 else [])),))


def place(world: World, rng: random.Random) -> Plan:
    """Return the plan of a description of a town, its surroundings and one resident with a job."""
    town = rng.choice(world.towns)
    kind, *rest = facts_of_town(world, town)
    sentences = [_state(fact) for fact in rng.sample(rest, rng.randint(3, 6))]
    far = rng.choice([other for other in world.towns if other != town])
    way = {
        "t": town.name,
        "u": far.name,
        "n": distance(town, far),
        "d": direction(far.east - town.east, far.north - town.north),
    }
    sentences.append(Sentence("town.way", way))
    sentences.append(Sentence("town.spot", {"t": town.name, "s": rng.choice(lists.SPOTS)}))
    sentences.append(Sentence(f"season.{rng.choice(lists.SEASONS)}", {"t": town.name}))
    rng.shuffle(sentences)
    known = [person for person in world.people if person.home == town.name and person.job]
    if known:
        person = rng.choice(known)
        slots = {"a": Mention(person, "full"), "j": person.job, "t": town.name}
        sentences.append(Sentence("town.resident", slots))
    return Plan("place", ((_state(kind), *sentences),))


def kinds(world: World, rng: random.Random) -> Plan:
    """Return the plan of complete descriptions of three to five things, foods, animals or jobs."""
    subjects = list(dict.fromkeys(subject_of(fact) for fact in _KINDS))
    paragraphs = []
    for subject in rng.sample(subjects, rng.randint(3, 5)):
        about = [fact for fact in _KINDS if subject_of(fact) == subject]
        rng.shuffle(about)
        sentences = [_state(fact) for fact in about]
        if subject in lists.THINGS:
            owner = Mention(rng.choice(world.people))
            slots = {"a": owner, "x": subject, "c": rng.choice(lists.COLORS)}
            sentences.append(Sentence("thing.owner", slots))
        elif subject in lists.ANIMALS or subject in lists.FOODS:
            key = "animal.seen" if subject in lists.ANIMALS else "food.bought"
            slots = {"a": Mention(rng.choice(world.people)), "k": subject}
            sentences.append(Sentence(key, slots | {"s": rng.choice(lists.SPOTS)}))
        paragraphs.append(tuple(sentences))
    return Plan("kinds", tuple(paragraphs))


def riddle(world: World, rng: random.Random) -> Plan:
    """Return the plan of a riddle: clues to an animal or a food, and the correct guess."""
    relations = ("legs", "eats", "lives") if rng.random() < 0.5 else ("kind", "taste", "colour")
    subject = rng.choice(lists.ANIMALS if relations[0] == "legs" else tuple(lists.FOOD_FACTS))
    clues = [fact for fact in _KINDS if subject_of(fact) == subject]
    sentences = [Sentence(f"riddle.{fact.relation.split('.')[1]}", fact.slots) for fact in clues]
    rng.shuffle(sentences)
    asker, guesser = (Mention(p) for p in rng.sample(world.people, 2))
    start = Sentence("riddle.start", {"a": asker, "b": guesser})
    end = Sentence("riddle.end", {"a": asker, "b": guesser, "k": subject})
    return Plan("riddle", ((start, *sentences, Sentence("riddle.ask", {}), end),))


def comparison(world: World, rng: random.Random) -> Plan:
    """Return the plan of two to four comparisons, each of two people or of two towns."""
    paragraphs = []
    for _ in range(rng.randint(2, 4)):
        make = rng.choice((_compare_people, _compare_towns))
        paragraphs.append(make(world, rng))
    return Plan("comparison", tuple(paragraphs))


def questions(world: World, rng: random.Random) -> Plan:
    """Return the plan of three to nine questions, each answered by a word or a sentence."""
    facts: list[Fact] = []
    person, town = rng.choice(world.people), rng.choice(world.towns)
    for source in (facts_of_person(world, person), facts_of_town(world, town), _KINDS):
        askable = [fact for fact in source if fact.others and not never_asked(fact)]
        facts += rng.sample(askable, min(len(askable), rng.randint(1, 3)))
    rng.shuffle(facts)
    form = "lines" if rng.random() < 0.5 else "marked"
    return Plan("questions", tuple(_exchange(fact, form, rng) for fact in facts))


def askable_kinds() -> list[Fact]:
    """Return the facts about things, foods, animals and jobs that training text can ask about."""
    return [fact for fact in _KINDS if fact.others and not never_asked(fact)]


def _exchange(fact: Fact, form: str, rng: random.Random) -> tuple[Sentence, ...]:
    question = Sentence(f"ask.{fact.relation}", fact.slots)
    short = Sentence("answer", {"v": fact.answer})
    answer = short if rng.random() < 0.5 else _state(fact)
    if form == "marked":
        return (
            Sentence("marked.question", {"q": Spoken((question,))}),
            Sentence("marked.answer", {"q": Spoken((answer,))}),
        )
    return (question, answer)


def _compare_people(world: World, rng: random.Random) -> tuple[Sentence, ...]:
    one, other = rng.sample(world.people, 2)
    pair = {"a": Mention(one), "b": Mention(other)}
    sentences = [
        Sentence("age", {"a": pair["a"], "n": one.age}),
        Sentence("age", {"a": pair["b"], "n": other.age}),
    ]
    gap = one.age - other.age
    if gap < 0:
        pair = {"a": pair["b"], "b": pair["a"]}
    sentences.append(
        Sentence(
            "compare.age" if gap else "compare.same_age", pair | {"n": Count(abs(gap), "year")}
        )
    )
    preferences = {
        "food": (one.food, other.food),
        "colour": (one.color, other.color),
        "hobby": (one.hobby, other.hobby),
    }
    same = {name: mine for name, (mine, theirs) in preferences.items() if mine == theirs}
    for name, value in same.items():
        sentences.append(Sentence(f"compare.same_{name}", pair | {"v": value}))
    if not same:
        likes = {
            "f": one.food if gap >= 0 else other.food,
            "g": other.food if gap >= 0 else one.food,
        }
        sentences.append(Sentence("compare.food", pair | likes))
    return tuple(sentences)


def _compare_towns(world: World, rng: random.Random) -> tuple[Sentence, ...]:
    one, other = sorted(rng.sample(world.towns, 2), key=lambda town: -town.people)
    sentences = [
        Sentence("town.people", {"t": town.name, "n": town.people}) for town in (one, other)
    ]
    slots = {"t": one.name, "u": other.name, "n": one.people - other.people}
    sentences.append(Sentence("compare.people" if slots["n"] else "compare.same_people", slots))
    away = direction(one.east - other.east, one.north - other.north)
    return (*sentences, Sentence("compare.way", slots | {"d": away, "n": distance(one, other)}))


def _named_now_and_then(facts: Sequence[Fact], rng: random.Random) -> list[Sentence]:
    """Return sentences that state facts about a person.

    A random quarter of the sentences use the person's name, and the rest use a pronoun.
    """
    sentences = []
    for fact in facts:
        slots = dict(fact.slots)
        if rng.random() < 0.25:
            slots["a"] = Mention(slots["a"].person)
        sentences.append(Sentence(fact.relation, slots))
    return sentences


def _state(fact: Fact) -> Sentence:
    return Sentence(fact.relation, fact.slots)
