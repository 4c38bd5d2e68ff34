"""People talking: meeting, buying, asking the way, consoling, learning, inviting."""

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
    Say,
    Slots,
    Spoken,
)

Turn = tuple[Person, tuple[Say, ...]]


def meeting(world: World, rng: random.Random) -> Plan:
    """Two who do not know each other ask about home, work and likes."""
    one, other = rng.sample(world.people, 2)
    turns: list[Turn] = [
        (one, (Say("talk.hello", {}), Say("talk.my_name", {"a": Mention(one)}))),
        (other, (Say("talk.hello", {}), Say("talk.my_name", {"a": Mention(other)}))),
    ]
    asker, asked = one, other
    for relation in rng.sample(_PERSONAL, rng.randint(2, 4)):
        question = _own(world, asked, "you").get(relation)
        if question is None or never_asked(question):
            continue
        answer = Say(relation, _own(world, asked, "i")[relation].slots)
        back = _own(world, asker, "i").get(relation)
        turns.append((asker, (Say(f"ask.{relation}", question.slots),)))
        if back and not never_asked(back) and rng.random() < 0.5:
            turns.append((asked, (answer, Say("talk.and_you", {}))))
            turns.append((asker, (Say(relation, back.slots),)))
        else:
            turns.append((asked, (answer,)))
        asker, asked = asked, asker
    turns.append((asker, (Say("talk.goodbye", {}),)))
    return _talk("meeting", turns, rng, Say("talk.meet", _scene(world, one, other, rng)))


def bargain(world: World, rng: random.Random) -> Plan:
    """Buying at the market, with the sum."""
    buyer, seller = rng.sample(world.people, 2)
    food, number, price = rng.choice(lists.FOODS), rng.randint(2, 9), rng.randint(2, 9)
    slots: Slots = {
        "f": food,
        "c": Count(number, food),
        "p": Count(price, "coin"),
        "v": Count(number * price, "coin"),
    }
    turns: list[Turn] = [
        (buyer, (Say("market.ask", slots),)),
        (seller, (Say("market.price", slots), Say("market.praise", slots))),
    ]
    if price > 3 and rng.random() < 0.5:
        cheaper = price - rng.randint(1, 2)
        turns.append((buyer, (Say("market.dear", slots),)))
        slots = slots | {"p": Count(cheaper, "coin"), "v": Count(number * cheaper, "coin")}
        turns.append((seller, (Say("market.cheaper", slots),)))
    turns += [
        (buyer, (Say("market.take", slots),)),
        (seller, (Say("market.total", slots),)),
        (buyer, (Say("market.pay", slots),)),
    ]
    return _talk("bargain", turns, rng, Say("market.scene", _scene(world, buyer, seller, rng)))


def way(world: World, rng: random.Random) -> Plan:
    """How to get from here to there."""
    stranger, local = rng.sample(world.people, 2)
    here, past, there = rng.sample(lists.SPOTS, 3)
    slots = {"s": there, "p": past, "h": here, "n": rng.randint(2, 25)}
    turns: list[Turn] = [
        (stranger, (Say("way.ask", slots),)),
        (local, (Say("way.first", slots), Say("way.then", slots))),
        (stranger, (Say("way.far", slots),)),
        (local, (Say("way.minutes", slots),)),
        (stranger, (Say("talk.thanks", {}),)),
    ]
    return _talk("way", turns, rng, Say("way.scene", _scene(world, stranger, local, rng)))


def comfort(world: World, rng: random.Random) -> Plan:
    """Somebody is troubled, a friend listens and helps."""
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
        (friend, (Say("comfort.ask", slots),)),
        (person, (Say("comfort.because", slots | {"why": Say(f"cause.{cause}", slots)}),)),
        (friend, (Say("comfort.understand", slots), Say(f"comfort.{cause}", slots))),
    ]
    if rng.random() < 0.6:
        turns.append((person, (Say("comfort.doubt", slots),)))
        turns.append((friend, (Say("comfort.again", slots), Say("comfort.offer", slots))))
    turns.append((person, (Say("comfort.thanks", slots),)))
    scene = {
        "a": Mention(person),
        "b": Mention(friend),
        "e": slots["e"],
        "s": rng.choice(lists.SPOTS),
    }
    plan = _talk("comfort", turns, rng, Say("comfort.scene", scene))
    both = {"a": Mention(person), "b": Mention(friend), "ab": Pair(person, friend)}
    after = Say("comfort.after", both)
    return Plan("comfort", (*plan.paragraphs, (after,)))


def lesson(world: World, rng: random.Random) -> Plan:
    """A teacher asks; a pupil answers, is sometimes wrong and put right."""
    teacher = rng.choice([person for person in world.people if person.job])
    pupils = rng.sample([person for person in world.people if not person.job], 2)
    turns: list[Turn] = []
    for fact in rng.sample(askable_kinds(), rng.randint(2, 4)):
        pupil = rng.choice(pupils)
        name = {"b": Mention(pupil)}
        turns.append((teacher, (Say(f"ask.{fact.relation}", fact.slots),)))
        wrong = [value for value in fact.others if value != fact.answer]
        if rng.random() < 0.3:
            turns.append((pupil, (Say("lesson.guess", {"v": rng.choice(wrong)}),)))
            turns.append((teacher, (Say("lesson.no", name), Say(fact.relation, fact.slots))))
        else:
            turns.append((pupil, (Say("answer", {"v": fact.answer}),)))
            turns.append((teacher, (Say("lesson.yes", name),)))
    scene = {"a": Mention(teacher), "b": Mention(pupils[0]), "c": Mention(pupils[1])}
    return _talk("lesson", turns, rng, Say("lesson.scene", scene))


def invitation(world: World, rng: random.Random) -> Plan:
    """Will you come with me?"""
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
    turns: list[Turn] = [(one, (Say("invite.ask", slots),))]
    if rng.random() < 0.4:
        slots["v"] = rng.choice([day for day in lists.WEEKDAYS if day != slots["w"]])
        turns.append((other, (Say("invite.busy", slots),)))
        turns.append((one, (Say("invite.other_day", slots),)))
        slots = slots | {"w": slots["v"]}
    turns.append((other, (Say("invite.yes", slots), Say("invite.when", slots))))
    turns.append((one, (Say("invite.time", slots), Say("invite.bring", slots))))
    turns.append((other, (Say("invite.agreed", slots),)))
    return _talk("invitation", turns, rng, Say("talk.meet", _scene(world, one, other, rng)))


def _own(world: World, person: Person, how: str) -> dict[str, Fact]:
    return {fact.relation: fact for fact in facts_of_person(world, person, how)}


_PERSONAL = ("home", "age", "food", "colour", "hobby", "pet", "wish", "friend", "job")


def _talk(kind: str, turns: list[Turn], rng: random.Random, scene: Say) -> Plan:
    """As a script (``Lina: ...``) or as a tale (``Lina said: "..."``), with or without a scene."""
    style = "script" if rng.random() < 0.5 else "said"
    lines = []
    for who, words in _merged(turns):
        manner = _manner(words, first=not lines) if style == "said" else style
        lines.append((Say(f"speech.{manner}", {"a": Mention(who), "words": Spoken(words)}),))
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
    """Nobody speaks twice running."""
    merged: list[Turn] = []
    for who, words in turns:
        if merged and merged[-1][0] == who:
            words = merged.pop()[1] + words
        merged.append((who, words))
    return merged


def _manner(words: tuple[Say, ...], *, first: bool) -> str:
    """Whether a turn is asked, said or replied."""
    last = words[-1].key
    if last.startswith("ask.") or last in _QUESTIONS:
        return "asked"
    return "said" if first else "replied"


_QUESTIONS = ("way.ask", "way.far", "comfort.ask", "talk.and_you", "invite.ask", "invite.when")
