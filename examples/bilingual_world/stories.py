"""Plans of short stories: an opening, details, one of twelve plots, and an ending."""

import random

from examples.bilingual_world import lists
from examples.bilingual_world.facts import World, facts_of_person, facts_of_town
from examples.bilingual_world.plan import Count, Mention, Pair, Person, Plan, Sentence, Slots


def story(world: World, rng: random.Random) -> Plan:
    """Return the plan of a story about two people of the island."""
    hero = rng.choice(world.people)
    friend = world.person(hero.friend) if rng.random() < 0.4 else rng.choice(world.people)
    if friend == hero:
        friend = world.person(hero.friend)
    slots = _cast(world, hero, friend, rng)
    opening = [Sentence("story.open", slots), *_introductions(world, hero, rng)]
    opening += rng.sample(_details(world, slots, rng), rng.randint(1, 3))
    plot = rng.choice(tuple(lists.PLOTS))
    steps = [
        Sentence(f"{plot}.{step.lstrip('?')}", slots)
        for step in lists.PLOTS[plot]
        if not step.startswith("?") or rng.random() < 0.6
    ]
    middle = rng.randint(2, len(steps) - 1)
    ending = (
        [Sentence("story.feel", slots | {"e": lists.FEELING_AT_END[plot]})]
        if rng.random() < 0.5
        else []
    )
    ending.append(Sentence(rng.choice(("story.told", "story.night", f"{plot}.moral")), slots))
    paragraphs = (opening, steps[:middle], steps[middle:] + ending)
    if rng.random() < 0.4:
        paragraphs = (opening + steps, ending)
    return Plan(f"story.{plot}", tuple(tuple(paragraph) for paragraph in paragraphs))


def _cast(world: World, hero: Person, friend: Person, rng: random.Random) -> Slots:
    """Return values for the placeholders of all plots."""
    here, there, elsewhere = rng.sample(lists.SPOTS, 3)
    made = rng.choice(lists.HANDMADE)
    thing = rng.choice([name for name in lists.THINGS if name != made])
    crop = rng.choice(lists.CROPS)
    kin = rng.choice(
        [fact for fact in facts_of_person(world, hero, "again") if fact.relation == "kin"]
    )
    return {
        "a": Mention(hero),
        "b": Mention(friend),
        "ab": Pair(hero, friend),
        "full": Mention(hero, "full"),
        "r": kin.slots["r"],
        "kin": kin.slots["b"],
        "t": hero.home,
        "u": rng.choice([town for town in lists.TOWNS if town != hero.home]),
        "s": here,
        "s2": there,
        "s3": elsewhere,
        "x": thing,
        "y": made,
        "c": rng.choice(lists.COLORS),
        "f": rng.choice(lists.FOODS),
        "g": rng.choice(lists.FOODS),
        "fs": Count(rng.randint(2, 12), rng.choice(lists.FOODS)),
        "v": crop,
        "vs": Count(rng.randint(2, 30), crop),
        "m": Count(rng.randint(3, 30), "coin"),
        "m2": Count(rng.randint(31, 60), "coin"),
        "d": Count(rng.randint(2, 9), "day"),
        "k": rng.choice(lists.PETS),
        "q": rng.choice(lists.PET_NAMES),
        "w": rng.choice(lists.WEEKDAYS),
        "p": rng.choice(lists.PARTS_OF_DAY),
        "z": rng.choice(lists.SEASONS),
        "o": rng.choice(lists.HIDING_PLACES),
        "h": hero.hobby,
    }


def _introductions(world: World, hero: Person, rng: random.Random) -> list[Sentence]:
    """Return up to two sentences with facts about the hero."""
    facts = [f for f in facts_of_person(world, hero, "again") if f.relation != "home"]
    return [Sentence(fact.relation, fact.slots) for fact in rng.sample(facts, rng.randint(0, 2))]


def _details(world: World, slots: Slots, rng: random.Random) -> list[Sentence]:
    """Return sentences about weather, sights, sounds, smells and the town."""
    town = rng.choice(facts_of_town(world, world.town(slots["t"])))
    animal = {"k": rng.choice(lists.ANIMALS), "s": slots["s"], "c": rng.choice(lists.COLORS)}
    return [
        Sentence(f"weather.{rng.choice(lists.WEATHERS)}", {}),
        Sentence("detail.animal", animal),
        Sentence("detail.smell", {"f": rng.choice(lists.FOODS), "s": slots["s"]}),
        Sentence("detail.sound", {"s": slots["s"], "t": slots["t"]}),
        Sentence("detail.wears", {"a": slots["a"], "c": slots["c"]}),
        Sentence("detail.carries", {"a": slots["a"], "f": slots["fs"]}),
        Sentence(town.relation, town.slots),
    ]
