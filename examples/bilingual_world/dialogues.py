"""Plans of dialogues: meetings, purchases, directions, comfort, lessons and invitations."""

import random

from examples.bilingual_world import lists
from examples.bilingual_world.descriptions import askable_kinds
from examples.bilingual_world.facts import Fact, World, facts_of_person, never_asked
from examples.bilingual_world.plan import (
    Clock,
    Count,
    Mention,
    Pair,
    Person,
    Plan,
    Reference,
    Sentence,
    Slots,
    Spoken,
)

Turn = tuple[Person, tuple[Sentence, ...]]


def meeting(world: World, rng: random.Random) -> Plan:
    """Return the plan of a dialogue of two strangers about home, work and preferences."""
    one, other = rng.sample(world.people, 2)
    turns: list[Turn] = [
        (one, (Sentence("talk.hello", {}), Sentence("talk.my_name", {"a": Mention(one)}))),
        (other, (Sentence("talk.hello", {}), Sentence("talk.my_name", {"a": Mention(other)}))),
    ]
    asker, answerer = one, other
    for relation in rng.sample(_PERSONAL, rng.randint(2, 4)):
        question = _own(world, answerer, "you").get(relation)
        if question is None or never_asked(question):
            continue
        answer = Sentence(relation, _own(world, answerer, "i")[relation].slots)
        back = _own(world, asker, "i").get(relation)
        turns.append((asker, (Sentence(f"ask.{relation}", question.slots),)))
        if back and not never_asked(back) and rng.random() < 0.5:
            turns.append((answerer, (answer, Sentence("talk.and_you", {}))))
            turns.append((asker, (Sentence(relation, back.slots),)))
        else:
            turns.append((answerer, (answer,)))
        asker, answerer = answerer, asker
    turns.append((asker, (Sentence("talk.goodbye", {}),)))
    return _talk("meeting", turns, rng, Sentence("talk.meet", _scene(world, one, other, rng)))


def bargain(world: World, rng: random.Random) -> Plan:
    """Return the plan of a purchase at the market, in which the seller states the total price."""
    buyer, seller = rng.sample(world.people, 2)
    food, number, price = rng.choice(lists.FOODS), rng.randint(2, 9), rng.randint(2, 9)
    slots: Slots = {
        "f": food,
        "c": Count(number, food),
        "p": Count(price, "coin"),
        "v": Count(number * price, "coin"),
    }
    turns: list[Turn] = [
        (buyer, (Sentence("market.ask", slots),)),
        (seller, (Sentence("market.price", slots), Sentence("market.praise", slots))),
    ]
    if price > 3 and rng.random() < 0.5:
        cheaper = price - rng.randint(1, 2)
        turns.append((buyer, (Sentence("market.dear", slots),)))
        slots = slots | {"p": Count(cheaper, "coin"), "v": Count(number * cheaper, "coin")}
        turns.append((seller, (Sentence("market.cheaper", slots),)))
    turns += [
        (buyer, (Sentence("market.take", slots),)),
        (seller, (Sentence("market.total", slots),)),
        (buyer, (Sentence("market.pay", slots),)),
    ]
    return _talk("bargain", turns, rng, Sentence("market.scene", _scene(world, buyer, seller, rng)))


def way(world: World, rng: random.Random) -> Plan:
    """Return the plan of a dialogue in which a stranger asks the way and gets directions."""
    stranger, local = rng.sample(world.people, 2)
    here, past, there = rng.sample(lists.SPOTS, 3)
    slots = {"s": there, "p": past, "h": here, "n": rng.randint(2, 25)}
    turns: list[Turn] = [
        (stranger, (Sentence("way.ask", slots),)),
        (local, (Sentence("way.first", slots), Sentence("way.then", slots))),
        (stranger, (Sentence("way.far", slots),)),
        (local, (Sentence("way.minutes", slots),)),
        (stranger, (Sentence("talk.thanks", {}),)),
    ]
    return _talk("way", turns, rng, Sentence("way.scene", _scene(world, stranger, local, rng)))


def comfort(world: World, rng: random.Random) -> Plan:
    """Return the plan of a dialogue in which a friend comforts a person."""
    person = rng.choice(world.people)
    friend = world.person(person.friend)
    cause = rng.choice(tuple(lists.SAD_CAUSES))
    i = Mention(person, "i")
    slots = {
        "a": i,
        "b": Mention(friend),
        "you": Mention(person, "you"),
        "x": rng.choice(lists.THINGS),
        "k": person.pet,
        "q": person.pet_name,
        "e": lists.SAD_CAUSES[cause],
        "h": rng.choice(lists.HOBBIES),
        "f": rng.choice(lists.FOODS),
        "out": rng.choice(lists.OUTDOORS),
    }
    turns: list[Turn] = [
        (friend, (Sentence("comfort.ask", slots),)),
        (
            person,
            (Sentence("comfort.because", slots | {"why": Sentence(f"cause.{cause}", slots)}),),
        ),
        (friend, (Sentence("comfort.understand", slots), Sentence(f"comfort.{cause}", slots))),
    ]
    if rng.random() < 0.6:
        turns.append((person, (Sentence("comfort.doubt", slots),)))
        turns.append((friend, (Sentence("comfort.again", slots), Sentence("comfort.offer", slots))))
    turns.append((person, (Sentence("comfort.thanks", slots),)))
    scene = {
        "a": Mention(person),
        "b": Mention(friend),
        "e": slots["e"],
        "s": rng.choice(lists.SPOTS),
    }
    plan = _talk("comfort", turns, rng, Sentence("comfort.scene", scene))
    both = {"a": Mention(person), "b": Mention(friend), "ab": Pair(person, friend)}
    after = Sentence("comfort.after", both)
    return Plan("comfort", (*plan.paragraphs, (after,)))


def lesson(world: World, rng: random.Random) -> Plan:
    """Return the plan of a lesson: a teacher's questions, pupils' answers, and corrections."""
    teacher = rng.choice([person for person in world.people if person.job])
    pupils = rng.sample([person for person in world.people if not person.job], 2)
    turns: list[Turn] = []
    for fact in rng.sample(askable_kinds(), rng.randint(2, 4)):
        pupil = rng.choice(pupils)
        name = {"b": Mention(pupil)}
        turns.append((teacher, (Sentence(f"ask.{fact.relation}", fact.slots),)))
        wrong = [value for value in fact.others if value != fact.answer]
        if rng.random() < 0.3:
            turns.append((pupil, (Sentence("lesson.guess", {"v": rng.choice(wrong)}),)))
            turns.append(
                (teacher, (Sentence("lesson.no", name), Sentence(fact.relation, fact.slots)))
            )
        else:
            turns.append((pupil, (Sentence("answer", {"v": fact.answer}),)))
            turns.append((teacher, (Sentence("lesson.yes", name),)))
    scene = {"a": Mention(teacher), "b": Mention(pupils[0]), "c": Mention(pupils[1])}
    return _talk("lesson", turns, rng, Sentence("lesson.scene", scene))


def invitation(world: World, rng: random.Random) -> Plan:
    """Return the plan of an invitation that is accepted, sometimes for a different day."""
    one, other = rng.sample(world.people, 2)
    slots = {
        "h": one.hobby,
        "out": rng.choice(lists.OUTDOORS),
        "s": rng.choice(lists.SPOTS),
        "w": rng.choice(lists.WEEKDAYS),
        "c": Clock(rng.randint(7, 18), rng.choice((0, 30))),
        "x": rng.choice(lists.THINGS),
        "f": rng.choice(lists.FOODS),
        "a": Mention(one),
        "b": Mention(other),
    }
    turns: list[Turn] = [(one, (Sentence("invite.ask", slots),))]
    if rng.random() < 0.4:
        slots["v"] = rng.choice([day for day in lists.WEEKDAYS if day != slots["w"]])
        turns.append((other, (Sentence("invite.busy", slots),)))
        turns.append((one, (Sentence("invite.other_day", slots),)))
        slots = slots | {"w": slots["v"]}
    turns.append((other, (Sentence("invite.yes", slots), Sentence("invite.when", slots))))
    turns.append((one, (Sentence("invite.time", slots), Sentence("invite.bring", slots))))
    turns.append((other, (Sentence("invite.agreed", slots),)))
    return _talk("invitation", turns, rng, Sentence("talk.meet", _scene(world, one, other, rng)))


def _own(world: World, person: Person, how: Reference) -> dict[str, Fact]:
    return {fact.relation: fact for fact in facts_of_person(world, person, how)}


_PERSONAL = ("home", "age", "food", "colour", "hobby", "pet", "wish", "friend", "job")


def _talk(kind: str, turns: list[Turn], rng: random.Random, scene: Sentence) -> Plan:
    """Return a dialogue as a script (``Lina: ...``) or as a narrative (``Lina said: "..."``).

    The style is random. Narratives and a random half of the scripts start with ``scene``.
    """
    style = "script" if rng.random() < 0.5 else "said"
    lines = []
    for who, words in _merged(turns):
        manner = _manner(words, first=not lines) if style == "said" else style
        lines.append((Sentence(f"speech.{manner}", {"a": Mention(who), "words": Spoken(words)}),))
    opening = [(scene,)] if style == "said" or rng.random() < 0.5 else []
    return Plan(kind, (*opening, *lines))


def _scene(world: World, one: Person, other: Person, rng: random.Random) -> Slots:
    return {
        "a": Mention(one),
        "b": Mention(other),
        "t": rng.choice(world.towns).name,
        "s": rng.choice(lists.SPOTS),
        "p": rng.choice(lists.PARTS_OF_DAY),
    }


def _merged(turns: list[Turn]) -> list[Turn]:
    """Return the turns, with consecutive turns of the same speaker merged into one."""
    merged: list[Turn] = []
    for who, words in turns:
        if merged and merged[-1][0] == who:
            words = merged.pop()[1] + words
        merged.append((who, words))
    return merged


def _manner(words: tuple[Sentence, ...], *, first: bool) -> str:
    """Return the verb that introduces a turn: ``asked``, ``said`` or ``replied``."""
    last = words[-1].key
    if last.startswith("ask.") or last in _QUESTIONS:
        return "asked"
    return "said" if first else "replied"


_QUESTIONS = ("way.ask", "way.far", "comfort.ask", "talk.and_you", "invite.ask", "invite.when")
