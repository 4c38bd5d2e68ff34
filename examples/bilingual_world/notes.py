"""Plans of letters, diaries, notices, news, recipes, daily schedules and songs."""

import random

from examples.bilingual_world import lists
from examples.bilingual_world.facts import World
from examples.bilingual_world.plan import (
    Clock,
    Count,
    Mention,
    Person,
    Plan,
    Sentence,
    Slots,
    Spoken,
)

_NOTICES = ("lost", "found", "market", "concert", "work", "sale")
_NEWS = ("bridge", "prize", "harvest", "storm", "born", "visitors")
_DISHES = ("soup", "pie", "salad", "stew")
_SONG_LINES = ("hill", "river", "bird", "star", "road", "friend", "bread", "rain", "boat", "sleep")


def letter(world: World, rng: random.Random) -> Plan:
    """Return the plan of a letter to a friend or a member of the family."""
    writer = rng.choice(world.people)
    reader = world.person(writer.friend)
    if rng.random() < 0.4:
        reader = rng.choice(world.family(writer))
    slots = {"a": Mention(writer), "b": Mention(reader), "t": rng.choice(lists.TOWNS)}
    slots["s"] = rng.choice(lists.SPOTS)
    slots["z"] = rng.choice(lists.SEASONS)
    body = [Sentence("letter.open", slots), *_news_of(world, writer, rng, rng.randint(2, 4))]
    body.append(Sentence(rng.choice(("letter.invite", "letter.question", "letter.wish")), slots))
    return Plan(
        "letter",
        ((Sentence("letter.dear", slots),), tuple(body), (Sentence("letter.close", slots),)),
    )


def diary(world: World, rng: random.Random) -> Plan:
    """Return the plan of a diary entry about one day, in the first person."""
    writer = rng.choice(world.people)
    day = {"w": rng.choice(lists.WEEKDAYS), "c": Clock(rng.randint(5, 8), rng.choice((0, 30)))}
    sentences = [Sentence("diary.open", day), Sentence(f"weather.{rng.choice(lists.WEATHERS)}", {})]
    sentences += _news_of(world, writer, rng, rng.randint(3, 5))
    sentences.append(
        Sentence("diary.close", {"w": rng.choice(lists.WEEKDAYS), "s": rng.choice(lists.SPOTS)})
    )
    return Plan("diary", ((Sentence("diary.date", day),), tuple(sentences)))


def notice(world: World, rng: random.Random) -> Plan:
    """Return the plan of the notice board of a town, with one to three notices."""
    town = rng.choice(world.towns)
    sentences: list[tuple[Sentence, ...]] = [
        (Sentence("notice.title", {"t": town.name, "s": rng.choice(lists.SPOTS)}),)
    ]
    for name in rng.sample(_NOTICES, rng.randint(1, 3)):
        person = rng.choice(world.people)
        slots = _public_slots(person, rng) | {"t": town.name, "w": town.market_day}
        sentences.append((Sentence(f"notice.{name}", slots), Sentence("notice.contact", slots)))
    return Plan("notice", tuple(sentences))


def news(world: World, rng: random.Random) -> Plan:
    """Return the plan of a newspaper with two to four items."""
    items: list[tuple[Sentence, ...]] = [
        (Sentence("news.title", {"w": rng.choice(lists.WEEKDAYS)}),)
    ]
    for name in rng.sample(_NEWS, rng.randint(2, 4)):
        town = rng.choice(world.towns)
        slots = _public_slots(rng.choice(world.people), rng)
        slots |= {"t": town.name, "r": town.river, "n": rng.randint(2, 40)}
        mood = "sad" if name == "storm" else "glad"
        items.append((Sentence(f"news.{name}", slots), Sentence(f"news.quote_{mood}", slots)))
    return Plan("news", tuple(items))


def recipe(world: World, rng: random.Random) -> Plan:
    """Return the plan of a recipe with its ingredients and steps."""
    main, *others = rng.sample(_COOKED, 3)
    dish = rng.choice(_DISHES)
    title = {"f": main, "d": dish, "a": Mention(rng.choice(world.people))}
    amounts = [Count(rng.randint(2, 9), food) for food in (main, *others)]
    steps = [
        Sentence("recipe.wash", {"f": main, "g": others[0]}),
        Sentence("recipe.cut", {"f": rng.choice((main, others[0])), "n": rng.randint(2, 8)}),
        Sentence("recipe.add", {"f": others[1]}),
        Sentence(f"recipe.{dish}", {"f": main, "n": 5 * rng.randint(1, 12)}),
    ]
    end = Sentence("recipe.serve", {"n": rng.randint(2, 8), "c": rng.choice(lists.COLORS)})
    needs = Sentence("recipe.needs", dict(zip("xyz", amounts, strict=True)))
    if rng.random() < 0.5:
        numbered = [
            (Sentence("recipe.step", {"n": place + 1, "step": Spoken((sentence,))}),)
            for place, sentence in enumerate((*steps, end))
        ]
        return Plan("recipe", ((Sentence("recipe.title", title),), (needs,), *numbered))
    return Plan("recipe", ((Sentence("recipe.title", title),), (needs, *steps, end)))


def hours(world: World, rng: random.Random) -> Plan:
    """Return the plan of a text about a person's day, from getting up to going to bed."""
    person = rng.choice(world.people)
    a = Mention(person)
    clock = rng.randint(5, 7)
    work = lists.WORKPLACES[person.job] if person.job else "school"
    sentences = [Sentence("hours.open", {"a": a, "t": person.home})]
    for name, wait in (("up", 0), ("eat", 1), ("work", 1), ("noon", 4), ("free", 4), ("bed", 4)):
        clock += wait
        slots = {"c": Clock(clock, rng.choice((0, 15, 30, 45))), "a": Mention(person, "again")}
        slots |= {"f": rng.choice(lists.FOODS), "s": work, "h": person.hobby, "k": person.pet}
        sentences.append(Sentence(f"hours.{name}", slots))
    return Plan("hours", (tuple(sentences),))


def song(world: World, rng: random.Random) -> Plan:
    """Return the plan of a song with two or three verses of four lines each."""
    singer = Sentence(
        "song.title", {"t": rng.choice(world.towns).name, "z": rng.choice(lists.SEASONS)}
    )
    verses = []
    for _ in range(rng.randint(2, 3)):
        for name in rng.sample(_SONG_LINES, 4):
            slots = {
                "c": rng.choice(lists.COLORS),
                "k": rng.choice(lists.ANIMALS),
                "t": rng.choice(lists.TOWNS),
                "z": rng.choice(lists.SEASONS),
                "r": rng.choice(lists.RIVERS),
                "f": rng.choice(lists.FOODS),
            }
            verses.append((Sentence(f"song.{name}", slots),))
    return Plan("song", ((singer,), *verses))


_COOKED = ("carrot", "potato", "cabbage", "tomato", "pumpkin", "mushroom", "egg", "apple", "fish")


def _news_of(world: World, writer: Person, rng: random.Random, number: int) -> list[Sentence]:
    """Return ``number`` sentences about events in the writer's life, in the first person."""
    sentences = []
    for name in rng.sample(("did", "bought", "saw", "met", "sad", "glad", "pet"), number):
        slots = _first_person_slots(world, writer, rng)
        causes = {"sad": lists.SAD_CAUSES, "glad": lists.GLAD_CAUSES}.get(name, {})
        if causes:
            cause = rng.choice(tuple(causes))
            slots |= {"e": causes[cause], "why": Sentence(f"cause.{cause}", slots)}
        sentences.append(Sentence(f"letter.{name}", slots))
    return sentences


def _first_person_slots(world: World, writer: Person, rng: random.Random) -> Slots:
    return {
        "a": Mention(writer, "i"),
        "b": Mention(rng.choice([other for other in world.people if other != writer])),
        "x": rng.choice(lists.THINGS),
        "k": writer.pet,
        "q": writer.pet_name,
        "h": rng.choice(lists.HOBBIES),
        "f": rng.choice(lists.FOODS),
        "n": Count(rng.randint(2, 12), rng.choice(lists.FOODS)),
        "m": Count(rng.randint(2, 40), "coin"),
        "s": rng.choice(lists.SPOTS),
        "out": rng.choice(lists.OUTDOORS),
        "w": rng.choice(lists.WEEKDAYS),
        "o": rng.choice(lists.ANIMALS),
        "c": rng.choice(lists.COLORS),
    }


def _public_slots(person: Person, rng: random.Random) -> Slots:
    return {
        "a": Mention(person, "full"),
        "j": rng.choice(lists.JOBS),
        "x": rng.choice(lists.THINGS),
        "c": rng.choice(lists.COLORS),
        "s": rng.choice(lists.SPOTS),
        "s2": rng.choice(lists.SPOTS),
        "d": rng.choice(lists.WEEKDAYS),
        "h": Clock(rng.randint(8, 19), rng.choice((0, 30))),
        "m": Count(rng.randint(2, 60), "coin"),
        "f": rng.choice(lists.FOODS),
        "fs": Count(rng.randint(20, 900), rng.choice(("apple", "pear", "plum", "pumpkin"))),
        "k": Count(rng.randint(2, 7), rng.choice(("lamb", "kitten", "puppy", "duckling"))),
        "y": rng.choice(lists.HOBBIES),
    }
