"""The invented island of Orrin: its people and towns, and the properties of things.

All values are identifiers; a language has words for each identifier. A world is a pure function of
its seed and the same in every language.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
import random
from typing import Any
import zlib

from examples.bilingual_world import lists
from examples.bilingual_world.plan import Mention, Person, Slots


@dataclass(frozen=True)
class Town:
    """A town; ``east`` and ``north`` are kilometers from the center of the island."""

    name: str
    kind: str
    east: int
    north: int
    people: int
    age: int
    product: str
    river: str
    hill: str
    market_day: str


@dataclass(frozen=True)
class Fact:
    """A fact of the world.

    ``relation`` is the key of the sentence that states the fact and ``ask.relation`` that of the
    question; ``answer`` is the short answer, and ``others`` are the possible answers.
    """

    relation: str
    slots: Slots
    answer: Any
    others: tuple[Any, ...]


@dataclass(frozen=True)
class World:
    """All people and towns."""

    people: tuple[Person, ...]
    towns: tuple[Town, ...]

    def person(self, name: str) -> Person:
        """Return the person called ``name``."""
        return next(person for person in self.people if person.name == name)

    def family(self, person: Person) -> list[Person]:
        """Return the other members of ``person``'s family."""
        return [p for p in self.people if p.surname == person.surname and p != person]

    def town(self, name: str) -> Town:
        """Return the town called ``name``."""
        return next(town for town in self.towns if town.name == name)


def make_world(seed: int) -> World:
    """Return a world of 24 families of four in 24 towns."""
    rng = random.Random(f"world {seed}")
    towns = _towns(rng)
    women, men = list(lists.WOMEN), list(lists.MEN)
    rng.shuffle(women)
    rng.shuffle(men)
    people = []
    for index, surname in enumerate(lists.SURNAMES):
        home = towns[rng.randrange(len(towns))].name
        names = (women[2 * index], men[2 * index], women[2 * index + 1], men[2 * index + 1])
        ages = (*rng.sample(range(29, 52), 2), *rng.sample(range(6, 16), 2))
        people += [
            _person(rng, name, surname, home, woman=place % 2 == 0, age=age)
            for place, (name, age) in enumerate(zip(names, ages, strict=True))
        ]
    return World(_with_friends(rng, people), towns)


def facts_of_person(world: World, person: Person, how: str = "name") -> list[Fact]:
    """Return the facts about ``person``, who is mentioned as ``how`` (see Mention)."""
    who = {"a": Mention(person, how)}
    towns = tuple(town.name for town in world.towns)
    facts = [
        Fact("home", who | {"t": person.home}, person.home, towns),
        Fact("age", who | {"n": person.age}, person.age, _near(person.age, 5)),
        Fact("food", who | {"f": person.food}, person.food, lists.FOODS),
        Fact("colour", who | {"c": person.color}, person.color, lists.COLORS),
        Fact("hobby", who | {"h": person.hobby}, person.hobby, lists.HOBBIES),
        Fact("pet", who | {"k": person.pet, "q": person.pet_name}, person.pet, lists.PETS),
        Fact("wish", who | {"t": person.wish}, person.wish, towns),
    ]
    others = tuple(Mention(other) for other in world.people)
    friend = Mention(world.person(person.friend))
    facts.append(Fact("friend", who | {"b": friend}, friend, others))
    if person.job:
        place = lists.WORKPLACES[person.job]
        slots = who | {"j": person.job, "w": place}
        facts.append(Fact("job", slots, person.job, lists.JOBS))
        facts.append(Fact("duty", who | {"d": f"{person.job}.duty"}, None, ()))
    for other in world.family(person):
        kin = {"b": Mention(other), "r": _kinship(person, other)}
        facts.append(Fact("kin", who | kin, Mention(other), others))
    return facts


def facts_of_town(world: World, town: Town) -> list[Fact]:
    """Return the facts about ``town``."""
    it = {"t": town.name}
    side = {"k": town.kind, "d": direction(town.east, town.north)}
    near = min((other for other in world.towns if other != town), key=lambda o: distance(town, o))
    way = {
        "u": near.name,
        "n": distance(town, near),
        "d": direction(near.east - town.east, near.north - town.north),
    }
    return [
        Fact("town.kind", it | side, side["d"], lists.DIRECTIONS),
        Fact("town.people", it | {"n": town.people}, town.people, _near(town.people, 700)),
        Fact("town.age", it | {"n": town.age}, town.age, _near(town.age, 150)),
        Fact("town.product", it | {"x": town.product}, town.product, lists.PRODUCTS),
        Fact("town.river", it | {"r": town.river}, town.river, lists.RIVERS),
        Fact("town.hill", it | {"m": town.hill}, town.hill, lists.HILLS),
        Fact("town.market", it | {"w": town.market_day}, town.market_day, lists.WEEKDAYS),
        Fact("town.near", it | way, near.name, tuple(other.name for other in world.towns)),
    ]


def facts_of_kinds() -> list[Fact]:
    """Return the facts about all things, foods, animals and jobs, the same in every world."""
    facts = []
    for thing, material in lists.MATERIAL_OF.items():
        facts.append(Fact("thing.use", {"x": thing, "u": f"{thing}.use"}, None, ()))
        facts.append(Fact("thing.material", {"x": thing, "m": material}, material, lists.MATERIALS))
    for food, (kind, taste, color) in lists.FOOD_FACTS.items():
        facts.append(Fact("food.kind", {"f": food, "k": kind}, kind, lists.FOOD_KINDS))
        facts.append(Fact("food.taste", {"f": food, "e": taste}, taste, lists.TASTES))
        facts.append(Fact("food.colour", {"f": food, "c": color}, color, lists.COLORS))
    for animal, (legs, meal, house) in lists.ANIMAL_FACTS.items():
        facts.append(Fact("animal.legs", {"k": animal, "n": legs}, legs, (0, 2, 4, 6, 8)))
        facts.append(Fact("animal.eats", {"k": animal, "e": meal}, meal, lists.MEALS))
        facts.append(Fact("animal.lives", {"k": animal, "l": house}, house, lists.ANIMAL_HOMES))
    for job, place in lists.WORKPLACES.items():
        facts.append(Fact("job.place", {"j": job, "w": place}, place, lists.SPOTS))
    return facts


def all_facts(world: World) -> list[Fact]:
    """Return all facts in a fixed order."""
    facts = [fact for person in world.people for fact in facts_of_person(world, person)]
    facts += [fact for town in world.towns for fact in facts_of_town(world, town)]
    return facts + facts_of_kinds()


def subject_of(fact: Fact) -> str:
    """Return the thing, food, animal or job that a fact of kinds is about."""
    first = {"thing": "x", "food": "f", "animal": "k", "job": "j"}[fact.relation.split(".")[0]]
    return fact.slots[first]


def never_asked(fact: Fact) -> bool:
    """Return True for the eighth of all facts that no training question covers."""
    names = [fact.relation] + [str(value) for _, value in sorted(fact.slots.items())]
    return zlib.crc32(" ".join(names).encode()) % 8 == 0


def distance(town: Town, other: Town) -> int:
    """Return the distance between two towns in whole kilometers."""
    return max(1, round(math.hypot(town.east - other.east, town.north - other.north)))


def direction(east: int, north: int) -> str:
    """Return the compass point, one of eight, of an offset."""
    eighth = round(math.atan2(east, north) / (math.pi / 4)) % 8
    return lists.DIRECTIONS[eighth]


def _towns(rng: random.Random) -> tuple[Town, ...]:
    return tuple(
        Town(
            name=name,
            kind=rng.choice(lists.TOWN_KINDS),
            east=rng.randint(-60, 60),
            north=rng.randint(-60, 60),
            people=rng.randint(2, 90) * 100,
            age=rng.randint(8, 60) * 10,
            product=rng.choice(lists.PRODUCTS),
            river=rng.choice(lists.RIVERS),
            hill=rng.choice(lists.HILLS),
            market_day=rng.choice(lists.WEEKDAYS),
        )
        for name in lists.TOWNS
    )


def _person(
    rng: random.Random, name: str, surname: str, home: str, *, woman: bool, age: int
) -> Person:
    return Person(
        name=name,
        surname=surname,
        woman=woman,
        age=age,
        home=home,
        job=rng.choice(lists.JOBS) if age > 20 else "",
        food=rng.choice(lists.FOODS),
        color=rng.choice(lists.COLORS),
        hobby=rng.choice(lists.HOBBIES),
        pet=rng.choice(lists.PETS),
        pet_name=rng.choice(lists.PET_NAMES),
        wish=rng.choice([town for town in lists.TOWNS if town != home]),
    )


def _with_friends(rng: random.Random, people: Sequence[Person]) -> tuple[Person, ...]:
    """Return the people in pairs of mutual friends of one age group."""
    friends: dict[str, str] = {}
    for grown in (True, False):
        group = [p.name for p in people if (p.age > 20) == grown]
        rng.shuffle(group)
        for one, other in zip(group[::2], group[1::2], strict=True):
            friends |= {one: other, other: one}
    return tuple(person.with_friend(friends[person.name]) for person in people)


def _kinship(person: Person, other: Person) -> str:
    """Return the relation of ``other`` to ``person`` in a family of parents and two children."""
    if (person.age > 20) and (other.age > 20):
        return "wife" if other.woman else "husband"
    if other.age > 20:
        return "mother" if other.woman else "father"
    if person.age > 20:
        return "daughter" if other.woman else "son"
    elder = "older" if other.age > person.age else "younger"
    return f"{elder}_{'sister' if other.woman else 'brother'}"


def _near(number: int, spread: int) -> tuple[int, ...]:
    """Return plausible wrong numbers around ``number``, rounded like it."""
    step = 100 if number >= 200 and spread > 200 else 10 if spread > 50 else 1
    return tuple(range(max(step, number - spread), number + spread + 1, step))
