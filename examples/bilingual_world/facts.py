"""The invented island of Orrin: its people and towns, and the properties of things.

All values are identifiers, and each language has words for every identifier. A world depends only
on its seed, so it is the same in every language.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
import random
from typing import Any
import zlib

from examples.bilingual_world import lists
from examples.bilingual_world.plan import Mention, Person, Reference, Slots


@dataclass(frozen=True)
class Town:
    """A town of the island."""

    name: str
    kind: str
    east: int
    """Kilometers to the east of the island's center."""
    north: int
    """Kilometers to the north of the island's center."""
    people: int
    """The number of inhabitants."""
    age: int
    """The age in years."""
    product: str
    river: str
    hill: str
    market_day: str


@dataclass(frozen=True)
class Fact:
    """A fact of the world."""

    relation: str
    """The key of the templates that state the fact. The question's key is ``ask.RELATION``."""
    slots: Slots
    """Values for the placeholders of the templates."""
    answer: Any
    """The short answer, or None if the fact has no question."""
    others: tuple[Any, ...]
    """All possible answers, the correct one included. Empty if the fact has no question."""


@dataclass(frozen=True)
class World:
    """The people and the towns of an island."""

    people: tuple[Person, ...]
    towns: tuple[Town, ...]

    def person(self, name: str) -> Person:
        """Return the person named ``name``."""
        return next(person for person in self.people if person.name == name)

    def family(self, person: Person) -> list[Person]:
        """Return the members of ``person``'s family except ``person``."""
        return [p for p in self.people if p.surname == person.surname and p != person]

    def town(self, name: str) -> Town:
        """Return the town named ``name``."""
        return next(town for town in self.towns if town.name == name)


def make_world(seed: int) -> World:
    """Return a world of 24 towns and 24 families of four people, drawn with ``seed``."""
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


def facts_of_person(world: World, person: Person, how: Reference = "name") -> list[Fact]:
    """Return the facts about ``person``; ``how`` selects how sentences refer to the person."""
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
    """Return the facts about ``town``, including its distance to the nearest town."""
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
    """Return the facts about all things, foods, animals and jobs. They are equal in all worlds."""
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
    """Return the facts about all people, towns, things, foods, animals and jobs, in fixed order."""
    facts = [fact for person in world.people for fact in facts_of_person(world, person)]
    facts += [fact for town in world.towns for fact in facts_of_town(world, town)]
    return facts + facts_of_kinds()


def subject_of(fact: Fact) -> str:
    """Return the thing, food, animal or job that a fact from ``facts_of_kinds`` is about."""
    first = {"thing": "x", "food": "f", "animal": "k", "job": "j"}[fact.relation.split(".")[0]]
    return fact.slots[first]


def never_asked(fact: Fact) -> bool:
    """Return whether training questions leave out ``fact``. A hash selects one fact in eight."""
    names = [fact.relation] + [str(value) for _, value in sorted(fact.slots.items())]
    return zlib.crc32(" ".join(names).encode()) % 8 == 0


def distance(town: Town, other: Town) -> int:
    """Return the distance between two towns, rounded to whole kilometers but at least 1."""
    return max(1, round(math.hypot(town.east - other.east, town.north - other.north)))


def direction(east: int, north: int) -> str:
    """Return the one of eight compass points that is closest to the direction of an offset."""
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
    """Return copies of the people with ``friend`` set.

    Friendship is mutual. Two friends are both adults or both children.
    """
    friends: dict[str, str] = {}
    for grown in (True, False):
        group = [p.name for p in people if (p.age > 20) == grown]
        rng.shuffle(group)
        for one, other in zip(group[::2], group[1::2], strict=True):
            friends |= {one: other, other: one}
    return tuple(person.with_friend(friends[person.name]) for person in people)


def _kinship(person: Person, other: Person) -> str:
    """Return what ``other`` is to ``person``, such as ``older_sister``, in a family of four."""
    if (person.age > 20) and (other.age > 20):
        return "wife" if other.woman else "husband"
    if other.age > 20:
        return "mother" if other.woman else "father"
    if person.age > 20:
        return "daughter" if other.woman else "son"
    elder = "older" if other.age > person.age else "younger"
    return f"{elder}_{'sister' if other.woman else 'brother'}"


def _near(number: int, spread: int) -> tuple[int, ...]:
    """Return plausible answers within ``spread`` of ``number``, in steps of 1, 10 or 100."""
    step = 100 if number >= 200 and spread > 200 else 10 if spread > 50 else 1
    return tuple(range(max(step, number - spread), number + spread + 1, step))
